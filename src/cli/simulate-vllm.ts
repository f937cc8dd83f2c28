/** `warmpath simulate-vllm`: simulated vLLM pods on this machine until a signal ends them. */
import { isIP, isIPv4 } from 'node:net';
import { errorText } from '../errors.ts';
import {
  createSimulatedPod,
  SIMULATED_POD_DEFAULTS as DEFAULTS,
  type SimulatedPod,
  type SimulatedPodAddresses,
} from '../simulator/simulated-pod.ts';
import { aborted, integer, oneOf, parseOptions, positive, readPlan } from './arguments.ts';

export type SimulateVllmIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly signal: AbortSignal;
};

const HELP = `usage: warmpath simulate-vllm [options]

Runs vLLM pods without a GPU: OpenAI API, tokenizer and render endpoints, metrics, KV events with replay.
Prints one line per pod when it is ready and runs until SIGINT or SIGTERM.

Addresses of pod i, counted from 0:
  HTTP on --port + i, KV events on --kv-port + 2i, replay on --replay-port + 2i
  with --data-parallel-size N: rank r on --kv-port + 2Ni + r and --replay-port + 2Ni + r, behind one HTTP port
  with --host-per-pod: the same three ports on --host + i (127.0.0.11, 127.0.0.12, …)

  --pods N                 how many pods (default 1)
  --host ADDRESS           IP address to bind (default ${DEFAULTS.host})
  --host-per-pod           one address per pod instead of one port per pod; IPv4 only
  --port N                 HTTP port, 0 = a free one (default 8000)
  --kv-port N              KV event port, 0 = a free one (default 5557)
  --replay-port N          replay port, 0 = a free one (default 5558; behind the ranks' event ports)
  --data-parallel-size N   ranks behind every HTTP port, each with its own cache and events; the header
                           x-data-parallel-rank names one, else the least busy one serves (default 1)
  --model NAME             served model (default ${DEFAULTS.model})
  --adapters A,B           LoRA adapters (default none)
  --block-size N           tokens per KV block (default ${DEFAULTS.blockSizeTokens})
  --blocks N               KV blocks, one of which is the null block (default ${DEFAULTS.nBlocks})
  --prefill-rate N         prompt tokens per second (default ${DEFAULTS.prefillTokensPerSecond})
  --decode-ms N            time of a decoding step (default ${DEFAULTS.decodeStepMs})
  --max-batched-tokens N   tokens per step (default ${DEFAULTS.maxBatchedTokens})
  --max-seqs N             requests running at once (default ${DEFAULTS.maxSequences})
  --answer-tokens N        length of chat answers without a limit (default ${DEFAULTS.defaultAnswerTokens})
  --seed N                 pod i uses seed + i: engines name blocks differently (default ${DEFAULTS.seed})
  --events FORM            maps (vLLM 0.24+) or arrays (default ${DEFAULTS.wire.events})
  --hashes FORM            int or bytes (default ${DEFAULTS.wire.hashes})
  --replay-frames N        4 (vLLM 0.26+) or 3 (default ${DEFAULTS.wire.replayFrames})
  --buffer-steps N         event batches kept for replay (default ${DEFAULTS.bufferSteps})
  --render MODE            on, forbidden (403) or missing (404) (default ${DEFAULTS.render})
  --tokenizer-delay MS     delay of tokenizer answers, or hang (default 0)
  --clock-offset MS        how far the pods' clock is ahead, negative: behind (default 0)
  --json                   ready lines as JSON: entries of a static endpoints file

Exit codes: 0 ended by the signal, 1 could not start, 2 wrong usage.`;

type PodOptions = Parameters<typeof createSimulatedPod>[0];
type Plan = { readonly pods: readonly NonNullable<PodOptions>[]; readonly output: 'text' | 'json' };

/** @returns exit code: 0 ended by the signal, 1 could not start, 2 wrong usage */
export async function runSimulateVllm(args: readonly string[], io: SimulateVllmIo): Promise<number> {
  const asked = readPlan('simulate-vllm', HELP, io, () => readArguments(args));
  if (asked.kind === 'exit') return asked.code;
  const { plan } = asked;
  const started: SimulatedPod[] = [];
  try {
    const ready: string[] = [];
    for (const [i, options] of plan.pods.entries()) {
      const pod = createSimulatedPod(options);
      const addresses = await pod.start();
      started.push(pod);
      ready.push(readyLine(`pod-${i}`, pod, addresses, plan.output));
    }
    // Nothing is announced before everything runs: a line printed is a pod that stays.
    ready.forEach((line) => io.stdout(line));
    await aborted(io.signal);
    return 0;
  } catch (error) {
    io.stderr(`warmpath simulate-vllm: ${errorText(error)}`);
    return 1;
  } finally {
    await Promise.all(started.map((pod) => pod.stop()));
  }
}

function readArguments(args: readonly string[]): Plan | 'help' {
  const { values } = parseOptions({
    args: [...args],
    options: {
      help: { type: 'boolean', short: 'h' },
      json: { type: 'boolean' },
      pods: { type: 'string', default: '1' },
      host: { type: 'string', default: DEFAULTS.host },
      'host-per-pod': { type: 'boolean' },
      port: { type: 'string', default: '8000' },
      'kv-port': { type: 'string', default: '5557' },
      'replay-port': { type: 'string' },
      'data-parallel-size': { type: 'string', default: String(DEFAULTS.dataParallelSize) },
      model: { type: 'string', default: DEFAULTS.model },
      adapters: { type: 'string', default: '' },
      'block-size': { type: 'string', default: String(DEFAULTS.blockSizeTokens) },
      blocks: { type: 'string', default: String(DEFAULTS.nBlocks) },
      'prefill-rate': { type: 'string', default: String(DEFAULTS.prefillTokensPerSecond) },
      'decode-ms': { type: 'string', default: String(DEFAULTS.decodeStepMs) },
      'max-batched-tokens': { type: 'string', default: String(DEFAULTS.maxBatchedTokens) },
      'max-seqs': { type: 'string', default: String(DEFAULTS.maxSequences) },
      'answer-tokens': { type: 'string', default: String(DEFAULTS.defaultAnswerTokens) },
      seed: { type: 'string', default: String(DEFAULTS.seed) },
      events: { type: 'string', default: DEFAULTS.wire.events },
      hashes: { type: 'string', default: DEFAULTS.wire.hashes },
      'replay-frames': { type: 'string', default: String(DEFAULTS.wire.replayFrames) },
      'buffer-steps': { type: 'string', default: String(DEFAULTS.bufferSteps) },
      render: { type: 'string', default: DEFAULTS.render },
      'tokenizer-delay': { type: 'string', default: '0' },
      'clock-offset': { type: 'string', default: '0' },
    },
  });
  if (values.help) return 'help';
  const nPods = integer('--pods', values.pods, 1, 1000);
  const spread = values['host-per-pod'] ? 'hosts' : 'ports';
  if (isIP(values.host) === 0) throw new Error(`--host must be an IP address, got "${values.host}"`);
  if (spread === 'hosts' && !isIPv4(values.host)) {
    throw new Error(`--host-per-pod needs an IPv4 --host, got "${values.host}"`);
  }
  const nRanks = integer('--data-parallel-size', values['data-parallel-size'], 1, 256);
  const kvEventsPort = integer('--kv-port', values['kv-port'], 0, 65_535);
  const ports = {
    port: integer('--port', values.port, 0, 65_535),
    kvEventsPort,
    replayPort: integer('--replay-port', values['replay-port'] ?? String(5557 + nRanks), 0, 65_535),
  };
  if (nRanks > 1) checkRankPorts(ports, nRanks);
  const seed = integer('--seed', values.seed, 0, 2 ** 31);
  const common = {
    model: values.model,
    adapters: values.adapters.split(',').filter((name) => name !== ''),
    blockSizeTokens: integer('--block-size', values['block-size'], 1, 65_536),
    nBlocks: integer('--blocks', values.blocks, 2, 10_000_000),
    prefillTokensPerSecond: positive('--prefill-rate', values['prefill-rate']),
    decodeStepMs: positive('--decode-ms', values['decode-ms']),
    maxBatchedTokens: integer('--max-batched-tokens', values['max-batched-tokens'], 1, 1_000_000),
    maxSequences: integer('--max-seqs', values['max-seqs'], 1, 100_000),
    defaultAnswerTokens: integer('--answer-tokens', values['answer-tokens'], 1, 1_000_000),
    dataParallelSize: nRanks,
    bufferSteps: integer('--buffer-steps', values['buffer-steps'], 1, 10_000_000),
    render: oneOf('--render', values.render, ['on', 'forbidden', 'missing'] as const),
    tokenizerDelayMs:
      values['tokenizer-delay'] === 'hang'
        ? ('hang' as const)
        : integer('--tokenizer-delay', values['tokenizer-delay'], 0, 3_600_000),
    clockOffsetMs: integer('--clock-offset', values['clock-offset'], -(10 ** 12), 10 ** 12),
    wire: {
      events: oneOf('--events', values.events, ['maps', 'arrays'] as const),
      hashes: oneOf('--hashes', values.hashes, ['int', 'bytes'] as const),
      replayFrames: oneOf('--replay-frames', values['replay-frames'], ['4', '3'] as const) === '3' ? 3 : 4,
    } as const,
  };
  const pods = Array.from({ length: nPods }, (_, i) => ({
    ...common,
    seed: seed + i,
    host: spread === 'hosts' ? hostAfter(values.host, i) : values.host,
    ...(spread === 'hosts' ? ports : portsAfter(ports, i, nRanks)),
  }));
  return { pods, output: values.json ? 'json' : 'text' };
}

type Ports = { readonly port: number; readonly kvEventsPort: number; readonly replayPort: number };

/** An endpoint names the ports of its first rank: the others follow them. */
function checkRankPorts({ kvEventsPort, replayPort }: Ports, nRanks: number): void {
  if (kvEventsPort === 0 || replayPort === 0) throw new Error('--data-parallel-size needs --kv-port and --replay-port');
  if (Math.abs(replayPort - kvEventsPort) < nRanks) {
    throw new Error(`--replay-port must leave ${nRanks} ports to --kv-port ${kvEventsPort}, got ${replayPort}`);
  }
}

/** Port 0 stays 0: every pod gets free ones. */
function portsAfter(ports: Ports, i: number, nRanks: number): Ports {
  const after = (flag: string, port: number, offset: number): number => {
    if (port === 0) return 0;
    if (port + offset > 65_535)
      throw new Error(`${flag} ${port} leaves no port for pod ${i}: ${port + offset} > 65535`);
    return port + offset;
  };
  return {
    port: after('--port', ports.port, i),
    kvEventsPort: after('--kv-port', ports.kvEventsPort, 2 * nRanks * i),
    replayPort: after('--replay-port', ports.replayPort, 2 * nRanks * i),
  };
}

function hostAfter(host: string, i: number): string {
  const octets = host.split('.').map(Number);
  const last = octets[3]! + i;
  if (last > 254) throw new Error(`--host ${host} leaves no address for pod ${i}: the last number would be ${last}`);
  return [...octets.slice(0, 3), last].join('.');
}

function readyLine(name: string, pod: SimulatedPod, addresses: SimulatedPodAddresses, output: Plan['output']): string {
  const { model, adapters, dataParallelSize } = pod.options;
  const { httpAddress, kvEventsEndpoint, replayEndpoint } = addresses;
  if (output === 'json') {
    return JSON.stringify({
      name,
      address: httpAddress,
      model,
      adapters,
      kvEvents: kvEventsEndpoint,
      replay: replayEndpoint,
      ...(dataParallelSize > 1 ? { dataParallelSize } : {}),
    });
  }
  return `${name} ready: http://${httpAddress} model ${model}, KV events ${kvEventsEndpoint}, replay ${replayEndpoint}`;
}
