/**
 * Asks replicas that run already for what this one missed: first the hash seed, then, for sources whose engines no longer
 * replay all they hold, what a sibling knows of them. A snapshot is only put in the place of a partial view, and only
 * believed once the engine's own replay goes on from it without a hole (kvevents/event-stream.ts). A sibling that is slow,
 * of another version or talks nonsense costs nothing but the attempt.
 */
import { lookup } from 'node:dns/promises';
import { networkInterfaces } from 'node:os';
import {
  credentials,
  makeClientConstructor,
  type ChannelCredentials,
  type Client,
  type ServiceError,
} from '@grpc/grpc-js';
import type { Clock } from '../clock.ts';
import { errorText, WarmpathError } from '../errors.ts';
import { MAX_SNAPSHOT_BYTES, type Ingest, type SourceSnapshot } from '../kvevents/ingest.ts';
import type { Log } from '../log.ts';
import type { HashSeed } from '../prefix/block-hash.ts';
import {
  loadSiblings,
  PIECE_BYTES,
  seedDigest,
  seedOf,
  SIBLING_VERSION,
  type Greeting,
  type Piece,
  type Welcome,
  type Wish,
} from './sibling-protocol.ts';

export type SiblingsDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly seed: HashSeed;
  readonly ingest: Pick<Ingest, 'sharedNames' | 'adopt' | 'statuses'>;
  /** How siblings are spoken to, as the gRPC port itself is. */
  readonly channel: () => Promise<ChannelCredentials>;
};

export type SiblingsOptions = {
  /** DNS name or address of the siblings, with their port. */
  readonly host: string;
  readonly port: number;
  /** Own port: one's own addresses with it are no sibling. */
  readonly ownPort: () => number;
  readonly greetTimeoutMs?: number;
  readonly pullTimeoutMs?: number;
};

export type Siblings = {
  /** Takes the seed over from the first sibling that answers, into `deps.seed`; nothing may have been hashed before. */
  joinSeed(): Promise<void>;
  /** Asks for partial views, a few times at most. */
  fill(): Promise<void>;
  stop(): void;
};

type SiblingClient = Client & {
  Greet(
    greeting: Greeting,
    options: { deadline: number },
    answer: (error: ServiceError | null, welcome: Welcome) => void,
  ): void;
  Pull(wish: Wish, options: { deadline: number }): AsyncIterable<Piece> & { cancel(): void };
};

/** A few replicas know what all of them know. */
const MAX_ASKED = 3;
const GREET_TIMEOUT_MS = 1000;
const PULL_TIMEOUT_MS = 30_000;
/** A snapshot may be too old by the time it is there; the next one follows soon. */
const MAX_ROUNDS = 3;
const ROUND_PAUSE_MS = 1000;
const LEARNING_MS = 10_000;
const LOOK_MS = 50;

export function createSiblings(deps: SiblingsDeps, options: SiblingsOptions): Siblings {
  const { log, clock, seed, ingest } = deps;
  const { greetTimeoutMs = GREET_TIMEOUT_MS, pullTimeoutMs = PULL_TIMEOUT_MS } = options;
  let isStopped = false;
  const open = new Set<{ end(): void }>();

  const addresses = async (): Promise<string[]> => {
    const own = new Set(
      Object.values(networkInterfaces()).flatMap((nets) => nets?.map(({ address }) => address) ?? []),
    );
    const isSelf = (address: string): boolean => own.has(address) && options.port === options.ownPort();
    try {
      const found = await lookup(options.host, { all: true });
      const others = found.map(({ address }) => address).filter((address) => !isSelf(address));
      return [...new Set(others)].sort(() => Math.random() - 0.5).slice(0, MAX_ASKED);
    } catch (error) {
      log.info('no siblings found', { host: options.host, problem: errorText(error) });
      return [];
    }
  };

  /** @returns what the first sibling that can be asked gives, null when none can */
  const askOne = async <T>(what: string, ask: (client: SiblingClient) => Promise<T>): Promise<T | null> => {
    for (const address of await addresses()) {
      if (isStopped) return null;
      const target = address.includes(':') ? `[${address}]:${options.port}` : `${address}:${options.port}`;
      let client: SiblingClient | null = null;
      try {
        client = clientOf(target, await deps.channel());
        return await ask(client);
      } catch (error) {
        log.info(`sibling gave no ${what}`, { sibling: target, problem: errorText(error) });
      } finally {
        client?.close();
      }
    }
    return null;
  };

  const greet = async (client: SiblingClient): Promise<HashSeed> => {
    const deadline = Date.now() + greetTimeoutMs;
    const welcome = await new Promise<Welcome>((resolve, reject) => {
      client.Greet({ version: SIBLING_VERSION }, { deadline }, (error, answer) =>
        error ? reject(error) : resolve(answer),
      );
    });
    const its = welcome.version === SIBLING_VERSION ? seedOf(welcome.seed) : null;
    if (its === null) throw new WarmpathError('peer_failed', `sibling answers as version ${welcome.version}`);
    return its;
  };

  const pull = async (client: SiblingClient): Promise<number> => {
    const sources = ingest.sharedNames('partial');
    const wish: Wish = { version: SIBLING_VERSION, seed_digest: seedDigest(seed), sources };
    const stream = client.Pull(wish, { deadline: Date.now() + pullTimeoutMs });
    const pulling = { end: () => stream.cancel() };
    open.add(pulling);
    let nTaken = 0;
    try {
      for await (const { source, snapshot } of snapshotsOf(stream)) {
        const name = sources[source];
        if (name === undefined)
          throw new WarmpathError('peer_failed', `source ${source} of ${sources.length} was not asked for`);
        if (await ingest.adopt(name, snapshot)) nTaken++;
      }
    } finally {
      open.delete(pulling);
      stream.cancel();
    }
    return nTaken;
  };

  const pause = (ms: number): Promise<void> => new Promise((resolve) => void clock.after(ms, resolve));

  /** Until the engines have replayed what they have: only then is it known what is missing. */
  const learnt = async (): Promise<void> => {
    const untilMs = clock.nowMs() + LEARNING_MS;
    const isLearning = (): boolean =>
      ingest.statuses().some(({ state, connection }) => connection !== 'down' && state !== 'live');
    while (!isStopped && isLearning() && clock.nowMs() < untilMs) await pause(LOOK_MS);
  };

  return {
    async joinSeed() {
      const its = await askOne('seed', greet);
      if (its === null) return;
      seed.set(its);
      log.info('hash seed taken over from a sibling');
    },
    async fill() {
      for (let round = 0; round < MAX_ROUNDS && !isStopped; round++) {
        if (round > 0) await pause(ROUND_PAUSE_MS * round);
        await learnt();
        if (isStopped || ingest.sharedNames('partial').length === 0) return;
        const nTaken = await askOne('snapshot', pull);
        if (nTaken !== null && nTaken > 0) log.info('snapshots taken over from a sibling', { sources: nTaken });
      }
    },
    stop() {
      isStopped = true;
      for (const call of open) call.end();
    },
  };
}

/** Puts pieces together again; never more than one source at a time is in memory. */
async function* snapshotsOf(
  pieces: AsyncIterable<Piece>,
): AsyncGenerator<{ readonly source: number; readonly snapshot: SourceSnapshot }> {
  let parts: Buffer[] = [];
  let nBytes = 0;
  let first: Piece | null = null;
  for await (const piece of pieces) {
    first ??= piece;
    if (piece.source !== first.source || piece.seq !== first.seq || piece.print !== first.print) {
      throw new WarmpathError('peer_failed', 'pieces of different snapshots are mixed');
    }
    parts.push(piece.words);
    nBytes += piece.words.byteLength;
    if (nBytes > MAX_SNAPSHOT_BYTES) {
      throw new WarmpathError('peer_failed', `snapshot too large: more than ${MAX_SNAPSHOT_BYTES} bytes`);
    }
    if (!piece.is_last) continue;
    const words = wordsOf(parts, nBytes);
    const { source, seq, print } = first;
    parts = [];
    nBytes = 0;
    first = null;
    yield { source, snapshot: { mark: { seq: BigInt(seq), print }, words } };
  }
}

function wordsOf(parts: readonly Buffer[], nBytes: number): Uint32Array {
  const words = new Uint32Array(Math.ceil(nBytes / 4));
  const bytes = new Uint8Array(words.buffer);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.byteLength;
  }
  return words;
}

function clientOf(target: string, channel: ChannelCredentials): SiblingClient {
  const Constructor = makeClientConstructor(loadSiblings(), 'Siblings');
  return new Constructor(target, channel, {
    'grpc.max_receive_message_length': 2 * PIECE_BYTES,
    'grpc.enable_channelz': 0,
    'grpc.enable_retries': 0,
    'grpc.enable_http_proxy': 0,
  }) as unknown as SiblingClient;
}

/** Where the gRPC port speaks plaintext, so do siblings. */
export function plaintextChannel(): Promise<ChannelCredentials> {
  return Promise.resolve(credentials.createInsecure());
}
