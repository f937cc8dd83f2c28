/** What is to be said of a publisher of KV events: from what was seen of it to findings. No I/O. */
import type { EndpointSpec, KvEventSource } from '../endpoints/endpoint.ts';
import type { Observed, ReplayAnswer } from './event-checks.ts';
import { count, ok, problem, warning, type Finding } from './finding.ts';
import type { AnnouncedSources } from './http-checks.ts';

export const EVENT_ARGUMENTS =
  '--enable-prefix-caching --kv-events-config \'{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558"}\'';

/** Of an endpoint without sources. */
export function noSourceFinding({ kvEvents }: EndpointSpec, announced: AnnouncedSources): Finding | null {
  if (kvEvents.length > 0) return null;
  const known = 'it is chosen by what was sent to it';
  if (announced === undefined || announced.length === 0) {
    return warning(
      'events',
      `publishes no KV events: ${known}`,
      `start vLLM with ${EVENT_ARGUMENTS}, and name the port`,
    );
  }
  const ports = announced.map(({ port }) => port ?? 'an unknown port').join(', ');
  return warning(
    'events',
    `the engine publishes KV events at port ${ports}, and nobody listens: ${known}`,
    'name them: `kvEvents: tcp://IP:PORT` of a static endpoint, or the label of discovery.kubernetes.kvEventsLabel',
  );
}

/** Of a publisher that connects to Warmpath: only the running one hears it. */
export function listenedFinding({ endpoint }: KvEventSource): Finding {
  return ok(
    'events',
    `connects to kvEvents.listen as ${endpoint}: /api/v1/endpoints of the running Warmpath tells more`,
  );
}

export function connectionFinding(
  { endpoint }: KvEventSource,
  rank: number,
  isConnected: boolean,
  announced: AnnouncedSources,
): Finding {
  if (isConnected) return ok('events', `${endpoint} is a publisher, the handshake succeeds`);
  const text = `no publisher answers at ${endpoint}`;
  const told = announced?.find((source) => source.rank === rank);
  if (announced !== undefined && told === undefined) {
    return problem('events', `${text}, and the engine says it publishes none`, `start vLLM with ${EVENT_ARGUMENTS}`);
  }
  if (told?.port && told.port !== portOf(endpoint)) {
    return problem(
      'events',
      `${text}: the engine publishes at port ${told.port}`,
      `set kvEvents.port, or the endpoint's own, to ${told.port}`,
    );
  }
  return problem(
    'events',
    text,
    `start vLLM with ${EVENT_ARGUMENTS} (\`*\`, not 0.0.0.0: else it does not listen), check the port and NetworkPolicies; \`kvEvents: none\` says that it publishes nothing`,
  );
}

/** @param answer null: nobody was asked, since nobody publishes there */
export function replayFinding(source: KvEventSource, answer: ReplayAnswer | null): Finding | null {
  if (source.replayEndpoint === null) {
    return warning(
      'replay',
      `no replay socket for ${source.endpoint}: a lost batch makes all that was learnt doubtful`,
      'start vLLM with "replay_endpoint":"tcp://*:5558" in --kv-events-config, and name it',
    );
  }
  if (answer === null) return null;
  if (answer.kind === 'ended') {
    const held = answer.nBatches === 0 ? '' : `, ${count(answer.nBatches, 'batch', 'batches')} held`;
    return ok('replay', `${source.replayEndpoint} answers${held}`);
  }
  const got = answer.kind === 'failed' ? answer.message : 'no end of the replay comes';
  return problem(
    'replay',
    `${source.replayEndpoint} does not replay: ${got}`,
    'check "replay_endpoint" of --kv-events-config, kvEvents.replayPort (or `replay` of the endpoint) and NetworkPolicies; `replay: none` says that there is none',
  );
}

/** @param metricsBlockSize as the engine's metrics have it */
export function observedFindings(observed: Observed, metricsBlockSize: number | null): Finding[] {
  const findings: Finding[] = [];
  const refused = [...observed.refused];
  if (refused.length > 0) {
    const reasons = refused.map(([reason, n]) => `${reason} (${n})`).join(', ');
    findings.push(
      warning('events', `not all is understood: ${reasons}`, '`warmpath events ENDPOINT` prints what comes'),
    );
  }
  if (observed.nBatches === 0) {
    findings.push(
      warning(
        'events',
        'no event came while it was watched: idle, or off',
        '--replay reads what it still holds, --probe sends a short completion and waits for its events',
      ),
    );
    return findings;
  }
  if (observed.nStored === 0) {
    findings.push(ok('events', 'events arrive; none of those seen stores blocks'));
    return findings;
  }
  findings.push(
    ok('events', `events arrive: ${[...observed.forms].join('; ')}`),
    ...blockFindings(observed, metricsBlockSize),
  );
  return findings;
}

function blockFindings(
  { blockSizes, otherGroups, extraKeys, hasNamelessAdapters }: Observed,
  metricsBlockSize: number | null,
): Finding[] {
  const findings: Finding[] = [];
  const sizes = [...blockSizes].sort((a, b) => a - b);
  if (otherGroups.size > 0) {
    findings.push(
      warning(
        'blocks',
        `has KV-cache groups besides full attention: ${[...otherGroups].join(', ')}`,
        'such models are routed without precise data; nothing to change',
      ),
    );
  } else if (sizes.length > 1) {
    const text = `announces blocks of ${sizes.join(' and ')} tokens`;
    findings.push(
      warning('blocks', text, 'one size per engine is expected: is another publisher behind this address?'),
    );
  } else if (sizes.length === 1 && metricsBlockSize !== null && sizes[0] !== metricsBlockSize) {
    const text = `announces blocks of ${sizes[0]} tokens, its metrics say ${metricsBlockSize}`;
    findings.push(
      warning('blocks', text, 'what is announced counts; is this publisher that of another engine (check the port)?'),
    );
  } else if (sizes.length === 1) {
    findings.push(ok('blocks', `blocks of ${sizes[0]} tokens`));
  }
  if (extraKeys === 'not told') {
    findings.push(
      warning(
        'salts',
        'events do not tell salts, images and adapters (vLLM before 0.17)',
        'update the engine, or expect prompts that differ in them only to look alike',
      ),
    );
  } else if (extraKeys === 'told') findings.push(ok('salts', 'events tell salts, images and adapters'));
  if (hasNamelessAdapters) {
    findings.push(
      warning(
        'salts',
        'events tell adapters by number, not by name (an older vLLM)',
        'update the engine: until then no prompt for an adapter finds its blocks',
      ),
    );
  }
  return findings;
}

/** Where replays and metrics cannot tell: ports that are announced otherwise than configured. */
export function announcedReplayFinding(
  source: KvEventSource,
  rank: number,
  announced: AnnouncedSources,
): Finding | null {
  const told = announced?.find((one) => one.rank === rank);
  if (told === undefined || source.replayEndpoint === null) return null;
  if (told.replayPort === null) {
    return problem(
      'replay',
      'the engine says it has no replay socket',
      'add "replay_endpoint":"tcp://*:5558" to --kv-events-config, or say `replay: none`',
    );
  }
  if (told.replayPort === portOf(source.replayEndpoint)) return null;
  return problem(
    'replay',
    `${source.replayEndpoint} is configured, the engine replays at port ${told.replayPort}`,
    `set kvEvents.replayPort, or \`replay\` of the endpoint, to ${told.replayPort}`,
  );
}

function portOf(endpoint: string): number {
  return Number(endpoint.slice(endpoint.lastIndexOf(':') + 1));
}
