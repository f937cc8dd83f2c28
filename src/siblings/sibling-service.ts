/**
 * Answers replicas that start: the hash seed, and what is known of event sources. Lives on the gRPC port, so whoever may ask
 * there (mutual TLS, allowed clients) may ask this. One snapshot at a time, at the pace of who reads it.
 */
import {
  status as grpcStatus,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from '@grpc/grpc-js';
import type { ServiceDefinition, UntypedServiceImplementation } from '@grpc/grpc-js';
import { errorText } from '../errors.ts';
import type { Ingest } from '../kvevents/ingest.ts';
import type { Log } from '../log.ts';
import type { HashSeed } from '../prefix/block-hash.ts';
import {
  loadSiblings,
  MAX_WISHED_SOURCES,
  PIECE_BYTES,
  seedBytes,
  seedDigest,
  SIBLING_VERSION,
  type Greeting,
  type Piece,
  type Welcome,
  type Wish,
} from './sibling-protocol.ts';

export type SiblingService = {
  readonly definition: ServiceDefinition;
  readonly implementation: UntypedServiceImplementation;
};

/** Who reads no piece for so long is cut off. */
const READER_TIMEOUT_MS = 10_000;

export function createSiblingService(deps: {
  readonly log: Log;
  readonly seed: HashSeed;
  readonly ingest: Pick<Ingest, 'snapshot'>;
}): SiblingService {
  const { log, seed, ingest } = deps;
  let isBusy = false;

  const greet = (call: ServerUnaryCall<Greeting, Welcome>, answer: sendUnaryData<Welcome>): void => {
    if (call.request.version !== SIBLING_VERSION) answer(otherVersion(call.request.version));
    else answer(null, { version: SIBLING_VERSION, seed: seedBytes(seed) });
  };

  const pull = (call: ServerWritableStream<Wish, Piece>): void => {
    const { version, seed_digest: digest, sources } = call.request;
    const refuse = (code: grpcStatus, details: string): void => void call.emit('error', { code, details });
    if (version !== SIBLING_VERSION) call.emit('error', otherVersion(version));
    else if (!digest.equals(seedDigest(seed))) refuse(grpcStatus.FAILED_PRECONDITION, 'hash seeds differ');
    else if (sources.length > MAX_WISHED_SOURCES) {
      refuse(grpcStatus.INVALID_ARGUMENT, `${sources.length} sources, limit ${MAX_WISHED_SOURCES}`);
    } else if (isBusy) refuse(grpcStatus.RESOURCE_EXHAUSTED, 'another replica is being told');
    else {
      isBusy = true;
      tell(call, sources)
        .then(
          () => call.end(),
          (error: unknown) => log.info('snapshots for a sibling not sent', { problem: errorText(error) }),
        )
        .finally(() => (isBusy = false));
    }
  };

  const tell = async (call: ServerWritableStream<Wish, Piece>, sources: readonly string[]): Promise<void> => {
    for (const [source, name] of sources.entries()) {
      if (call.cancelled || call.destroyed) return;
      const snapshot = await ingest.snapshot(name);
      if (snapshot === null) continue;
      const { mark, words } = snapshot;
      const bytes = Buffer.from(words.buffer, words.byteOffset, words.byteLength);
      for (let at = 0; at < bytes.byteLength; at += PIECE_BYTES) {
        const end = at + PIECE_BYTES;
        const piece: Piece = {
          source,
          seq: mark.seq.toString(),
          print: mark.print,
          words: bytes.subarray(at, end),
          is_last: end >= bytes.byteLength,
        };
        if (!call.write(piece)) await drained(call);
      }
    }
  };

  return { definition: loadSiblings(), implementation: { Greet: greet, Pull: pull } as UntypedServiceImplementation };
}

function otherVersion(version: number): { code: grpcStatus; details: string } {
  return { code: grpcStatus.FAILED_PRECONDITION, details: `version ${version}, expected ${SIBLING_VERSION}` };
}

function drained(call: ServerWritableStream<Wish, Piece>): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      const details = `nothing was read for ${READER_TIMEOUT_MS} ms`;
      call.emit('error', { code: grpcStatus.DEADLINE_EXCEEDED, details });
      reject(new Error(details));
    }, READER_TIMEOUT_MS);
    timer.unref();
    const done = (): void => {
      clearTimeout(timer);
      resolve();
    };
    call.once('drain', done);
    call.once('cancelled', done);
    call.once('close', done);
  });
}
