/**
 * Simulated vLLM pods, a network between, the real ingest thread, and two judges: one asks all the time whether anything is
 * promised that its pod never announced, the other waits until the index equals what every pod holds.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import type { EventStreamOptions } from '../../src/kvevents/event-stream.ts';
import { createIngest, type Ingest, type IngestSource, type SourceStatus } from '../../src/kvevents/ingest.ts';
import { silentLog } from '../../src/log.ts';
import { createBlockHasher, createHashSeed, type BlockHashes } from '../../src/prefix/block-hash.ts';
import { createSimulatedPod, type SimulatedPod, type SimulatedPodOptions } from '../../src/simulator/simulated-pod.ts';
import { TcpProxy } from './tcp-proxy.ts';

const MODEL = 'fleet-model';
const BLOCK = 4;

export type FleetPod = {
  readonly slot: number;
  readonly source: IngestSource;
  /** In front of its publisher and its replay socket. */
  readonly live: TcpProxy;
  readonly replay: TcpProxy;
  pod: SimulatedPod;
  http: string;
  /** Chained keys of all blocks this pod has held. */
  readonly announced: Set<string>;
};

export type KvFleet = {
  readonly pods: readonly FleetPod[];
  readonly ingest: Ingest;
  status(pod: FleetPod): SourceStatus;
  /** Requests one after another, of prompts that share beginnings. */
  work(pod: FleetPod, nRequests: number): Promise<void>;
  /** The process dies, and another one comes up on the same ports, with nothing in its cache. */
  kill(pod: FleetPod): Promise<void>;
  revive(pod: FleetPod): Promise<void>;
  /** Promises looked at so far. */
  nPromises(): number;
  /** Throws when a promise was false. @returns milliseconds until the index equals every pod, and all are trusted */
  untilEqual(): Promise<number>;
  /** The same until all are followed again and the index has nothing that a pod has not; pods may hold more. */
  untilTrue(): Promise<number>;
  stop(): Promise<void>;
};

export type KvFleetOptions = {
  readonly nPods?: number;
  readonly pod?: Partial<SimulatedPodOptions>;
  readonly stream?: Partial<Omit<EventStreamOptions, 'canReplay' | 'random'>>;
  readonly random?: () => number;
  /** Longest wait of `untilEqual`. */
  readonly limitMs?: number;
};

export async function startKvFleet(options: KvFleetOptions = {}): Promise<KvFleet> {
  const { nPods = 2, random = Math.random, limitMs = 20_000 } = options;
  const seed = createHashSeed();
  const hasher = createBlockHasher(seed);
  const root = hasher.root(MODEL, null, BLOCK);
  const ingest = createIngest(
    { log: silentLog, clock: systemClock, onCounters: () => undefined },
    { indexMaxBytes: 64 * 2 ** 20, seed, stream: options.stream ?? {} },
  );
  const pods: FleetPod[] = [];
  const lies: string[] = [];
  let nPromises = 0;

  const hashesOf = (tokenIds: Uint32Array): BlockHashes => hasher.blocks(tokenIds, root, BLOCK);
  const keyAt = (hashes: BlockHashes, i: number): string => `${hashes[2 * i]} ${hashes[2 * i + 1]}`;

  const podOf = (i: number, at?: { http: string; live: string; replay: string }): SimulatedPod => {
    const port = (address: string | undefined): number => Number(address?.split(':').at(-1) ?? 0);
    return createSimulatedPod({
      model: MODEL,
      blockSizeTokens: BLOCK,
      nBlocks: 300,
      prefillTokensPerSecond: 1e6,
      decodeStepMs: 0,
      seed: i + 1,
      ...options.pod,
      port: port(at?.http),
      kvEventsPort: port(at?.live),
      replayPort: port(at?.replay),
    });
  };
  const targets: { http: string; live: string; replay: string }[] = [];

  for (let i = 0; i < nPods; i++) {
    const pod = podOf(i);
    const { httpAddress, kvEventsEndpoint, replayEndpoint } = await pod.start();
    targets.push({ http: httpAddress, live: kvEventsEndpoint, replay: replayEndpoint });
    const [live, replay] = await Promise.all([TcpProxy.to(kvEventsEndpoint), TcpProxy.to(replayEndpoint)]);
    const source: IngestSource = {
      endpointId: `pod-${i}` as EndpointId,
      slot: i as EndpointSlot,
      rank: 0,
      model: MODEL,
      kvEvents: { endpoint: `tcp://${live.address}`, replayEndpoint: `tcp://${replay.address}` },
      incarnation: '',
    };
    pods.push({ slot: i, source, live, replay, pod, http: httpAddress, announced: new Set() });
  }
  await ingest.start();
  await ingest.reconcile(pods.map(({ source }) => source));
  // What is announced before a connection stands is only to be had as far back as the pod keeps it.
  while (!ingest.statuses().every(({ state }) => state === 'live')) await delay(5);

  const status = ({ slot }: FleetPod): SourceStatus => ingest.statuses()[slot]!;

  /** Whatever is resident now was announced, or is on its way. */
  const noteAnnounced = (pod: FleetPod): void => {
    for (const block of pod.pod.residentBlocks()) {
      const hashes = hashesOf(block.prefixTokenIds());
      pod.announced.add(keyAt(hashes, hashes.length / 2 - 1));
    }
  };

  /** Prompts that were sent anywhere: any of them may be asked for again. */
  const prompts: BlockHashes[] = [];

  const probe = (): void => {
    const hashes = prompts[Math.floor(random() * prompts.length)];
    if (hashes === undefined) return;
    for (const pod of pods) {
      // As a decision does: first whether the pod is believed, then what it holds.
      if (status(pod).trust === 'fallback') continue;
      const nMatched = ingest.index.longestMatch(hashes).blocks(pod.slot);
      nPromises += nMatched;
      for (let i = 0; i < nMatched; i++) {
        if (pod.announced.has(keyAt(hashes, i))) continue;
        noteAnnounced(pod);
        if (!pod.announced.has(keyAt(hashes, i))) lies.push(`block ${i} of a prompt on pod ${pod.slot}`);
      }
    }
  };
  const prober = setInterval(probe, 2);

  const nextPrompt = (): number[] => {
    const tokens: number[] = [];
    const nBlocks = 2 + Math.floor(random() * 20);
    // Few choices early: prompts share their beginnings; many later: caches overflow.
    for (let i = 0; i < nBlocks; i++) {
      const choice = Math.floor(random() * (i < 3 ? 2 : i < 8 ? 4 : 40));
      for (let k = 0; k < BLOCK; k++) tokens.push(100 + 50 * i + choice + k);
    }
    return tokens;
  };

  const difference = (pod: FleetPod): string | null => {
    const { nBlocks, trust } = status(pod);
    const resident = pod.pod.residentBlocks();
    if (trust !== 'exact') return `pod ${pod.slot} is ${JSON.stringify(status(pod))}`;
    if (nBlocks !== resident.length) return `pod ${pod.slot} holds ${resident.length} blocks, the index ${nBlocks}`;
    for (const block of resident) {
      const hashes = hashesOf(block.prefixTokenIds());
      const nMatched = ingest.index.longestMatch(hashes).blocks(pod.slot);
      if (nMatched * 2 !== hashes.length) return `pod ${pod.slot}: ${nMatched} of ${hashes.length / 2} blocks match`;
    }
    return null;
  };

  const excess = (pod: FleetPod): string | null => {
    const { nextSeq } = pod.pod.stats();
    const { trust, lastSeq } = status(pod);
    if (trust === 'fallback' || lastSeq !== String(nextSeq - 1))
      return `pod ${pod.slot}: ${JSON.stringify(status(pod))}`;
    const held = new Set<string>();
    for (const block of pod.pod.residentBlocks()) {
      const hashes = hashesOf(block.prefixTokenIds());
      held.add(keyAt(hashes, hashes.length / 2 - 1));
    }
    for (const hashes of prompts) {
      const nMatched = ingest.index.longestMatch(hashes).blocks(pod.slot);
      for (let i = 0; i < nMatched; i++) {
        if (!held.has(keyAt(hashes, i))) return `pod ${pod.slot}: block ${i} of a prompt is not there any more`;
      }
    }
    return null;
  };

  const until = async (wrongWith: (pod: FleetPod) => string | null): Promise<number> => {
    const startMs = performance.now();
    for (;;) {
      if (lies.length > 0) throw new Error(`promised and never announced: ${lies.slice(0, 5).join('; ')}`);
      const wrong = pods.map(wrongWith).filter((text) => text !== null);
      const tookMs = performance.now() - startMs;
      if (wrong.length === 0) return tookMs;
      if (tookMs > limitMs) throw new Error(`not within ${limitMs} ms: ${wrong.join('; ')}`);
      await delay(10);
    }
  };

  return {
    pods,
    ingest,
    status,
    async work(pod, nRequests) {
      for (let i = 0; i < nRequests; i++) {
        const prompt = nextPrompt();
        if (prompts.length < 500) prompts.push(hashesOf(Uint32Array.from(prompt)));
        else prompts[Math.floor(random() * 500)] = hashesOf(Uint32Array.from(prompt));
        const response = await fetch(`http://${pod.http}/v1/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ model: MODEL, prompt, max_tokens: 1 }),
        });
        await response.text();
        if (!response.ok) throw new Error(`pod ${pod.slot} answered ${response.status}`);
        noteAnnounced(pod);
      }
    },
    kill: ({ pod }) => pod.kill(),
    async revive(pod) {
      pod.pod = podOf(pod.slot, targets[pod.slot]);
      await pod.pod.start();
    },
    nPromises: () => nPromises,
    untilEqual: () => until(difference),
    untilTrue: () => until(excess),
    async stop() {
      clearInterval(prober);
      await ingest.stop();
      await Promise.all(pods.flatMap(({ pod, live, replay }) => [pod.stop(), live.stop(), replay.stop()]));
    },
  };
}
