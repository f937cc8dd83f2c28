/**
 * Endpoints from a list: inline in the configuration, or in a YAML file that is watched. A new list takes effect
 * within a second; a list that cannot be read or is wrong changes nothing, and says why.
 */
import { isMap, isNode, isScalar, LineCounter, parseDocument } from 'yaml';
import { errorText, WarmpathError } from '../errors.ts';
import { createFileFollower, type FileText } from '../file-follower.ts';
import type { Log } from '../log.ts';
import { showGot } from '../wording.ts';
import { parseEndpointList, type ListContext, type ListPath, type ParsedList } from './endpoint-list.ts';
import type { EndpointSpec } from './endpoint.ts';

export type StaticEndpointsDeps = {
  readonly log: Log;
  /** The whole list, once at start and after every change. */
  onEndpoints(specs: readonly EndpointSpec[]): void;
  /** Why the file is not in effect, null when it is again. */
  onProblem(problem: string | null): void;
};

export type StaticEndpointsOptions = {
  readonly file: string | null;
  /** The list itself where there is no file; null = no endpoints. */
  readonly inline: unknown;
  /** Default port of the publishers; null = an endpoint that names none publishes no events. */
  readonly kvPort: number | 'listen' | null;
  readonly replayPort: number;
  readonly pollMs?: number;
};

export type StaticEndpoints = {
  /** Resolves after the first `onEndpoints`; rejects with `config_invalid` and every mistake. */
  start(): Promise<void>;
  /** Another inline list; without effect where a file is followed. */
  replace(inline: unknown): void;
  stop(): Promise<void>;
};

export function createStaticEndpoints(deps: StaticEndpointsDeps, options: StaticEndpointsOptions): StaticEndpoints {
  const { file, inline } = options;
  const follower =
    file === null
      ? null
      : createFileFollower({ log: deps.log, onText }, { file, what: 'endpoints file', pollMs: options.pollMs });

  function onText(read: FileText): void {
    const parsed = parseFile(read, file!, options);
    if (parsed.kind === 'endpoints') {
      deps.log.info('endpoints file read', { file: file!, endpoints: parsed.specs.length });
      deps.onEndpoints(parsed.specs);
      deps.onProblem(null);
      return;
    }
    deps.log.warn('endpoints file not used, the last good one stays in effect', {
      file: file!,
      mistakes: parsed.mistakes,
    });
    deps.onProblem(parsed.mistakes.join('; '));
  }

  return {
    async start() {
      const parsed =
        follower === null ? parseInline(inline, options) : parseFile(await follower.first(), file!, options);
      if (parsed.kind === 'mistakes') throw new WarmpathError('config_invalid', parsed.mistakes.join('\n'));
      deps.onEndpoints(parsed.specs);
      follower?.follow();
    },
    replace(newest) {
      if (follower !== null) return;
      const parsed = parseInline(newest, options);
      if (parsed.kind === 'endpoints') deps.onEndpoints(parsed.specs);
      deps.onProblem(parsed.kind === 'endpoints' ? null : parsed.mistakes.join('; '));
    },
    stop: async () => follower?.stop(),
  };
}

type ListOptions = Pick<StaticEndpointsOptions, 'kvPort' | 'replayPort'>;

/** @param place where a part of the inline list was written */
export function parseInline(
  inline: unknown,
  { kvPort, replayPort }: ListOptions,
  place: (path: ListPath) => string = () => 'configuration',
): ParsedList {
  if (inline === null || inline === undefined) return { kind: 'endpoints', specs: [] };
  return parseEndpointList(inline, { label: 'discovery.endpoints', place, kvPort, replayPort });
}

/** The endpoints file: a map with the one key `endpoints`. */
export function parseFile(read: FileText, file: string, { kvPort, replayPort }: ListOptions): ParsedList {
  const refused = (...mistakes: string[]): ParsedList => ({ kind: 'mistakes', mistakes });
  if (read.kind === 'unreadable') return refused(`cannot read the endpoints file ${file}: ${read.why}`);
  const lines = new LineCounter();
  const document = parseDocument(read.text, { lineCounter: lines, prettyErrors: false });
  const at = (offset: number): string => `${file}:${lines.linePos(offset).line}`;
  if (document.errors.length > 0) {
    return refused(...document.errors.map((error) => `${file} must be YAML: ${error.message} (${at(error.pos[0])})`));
  }
  let content: unknown;
  try {
    content = document.toJS();
  } catch (error) {
    // The parser refuses documents whose aliases multiply into something huge.
    return refused(`${file} must be plain YAML: ${errorText(error)}`);
  }
  if (!isMap(document.contents))
    return refused(`${file} must be a map with the key endpoints, got ${showGot(content ?? undefined)}`);
  const place = (path: ListPath): string => {
    for (let length = path.length; length >= 0; length--) {
      const node = document.getIn(['endpoints', ...path.slice(0, length)], true);
      if (isNode(node) && node.range) return at(node.range[0]);
    }
    return file;
  };
  const unknown = document.contents.items
    .map(({ key }) => key)
    .filter((key) => !isScalar(key) || key.value !== 'endpoints')
    .map((key) => `unknown key ${String(key)}, the only one is endpoints (${at(key.range?.[0] ?? 0)})`);
  const { endpoints } = content as Record<string, unknown>;
  const context: ListContext = { label: 'endpoints', place, kvPort, replayPort };
  const parsed = parseEndpointList(endpoints, context);
  if (unknown.length === 0) return parsed;
  return refused(...unknown, ...(parsed.kind === 'mistakes' ? parsed.mistakes : []));
}
