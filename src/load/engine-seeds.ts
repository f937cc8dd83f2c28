/**
 * What somebody has measured of engines before, per GPU type or per endpoint, as a file says it: where learning begins, and
 * where it ends when it is switched off. Text in, seeds or every mistake out; who reads the file is engine-seed-file.ts.
 */
import { isMap, isNode, LineCounter, parseDocument } from 'yaml';
import type { Endpoint } from '../endpoints/endpoint.ts';
import { errorText } from '../errors.ts';
import { nearestName, showGot } from '../wording.ts';

/** Null = not said. */
export type EngineSeed = {
  readonly prefillTokensPerSecond: number | null;
  /** Of one answer. */
  readonly decodeTokensPerSecond: number | null;
  readonly capacityTokens: number | null;
};

export type EngineSeeds = {
  readonly nProfiles: number;
  /** What is said of the endpoint itself, and for the rest of those with its GPU. */
  of(endpoint: Pick<Endpoint, 'address' | 'labels'>): EngineSeed;
};

export type ParsedSeeds =
  | { readonly kind: 'seeds'; readonly seeds: EngineSeeds }
  | { readonly kind: 'mistakes'; readonly mistakes: readonly string[] };

type Path = readonly (string | number)[];
type Profile = {
  readonly of: { readonly kind: 'gpuType' | 'endpoint'; readonly name: string };
  readonly seed: EngineSeed;
};

const NUMBERS = ['prefillTokensPerSecond', 'decodeTokensPerSecond', 'capacityBlocks', 'blockSizeTokens'] as const;
const NAMES = ['gpuType', 'endpoint'] as const;
const KNOWN: readonly string[] = [...NAMES, ...NUMBERS];
const MAX_NUMBER = 1e9;
const MAX_PROFILES = 10_000;
const DEFAULT_BLOCK_SIZE_TOKENS = 16;
const NOTHING: EngineSeed = { prefillTokensPerSecond: null, decodeTokensPerSecond: null, capacityTokens: null };

export const NO_SEEDS: EngineSeeds = { nProfiles: 0, of: () => NOTHING };

/** @param gpuTypeLabel label of endpoints that names their GPU; null = none is configured */
export function parseEngineSeeds(text: string, file: string, gpuTypeLabel: string | null): ParsedSeeds {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const at = (offset: number): string => `${file}:${lines.linePos(offset).line}`;
  if (document.errors.length > 0) {
    const mistakes = document.errors.map((error) => `${file} must be YAML: ${error.message} (${at(error.pos[0])})`);
    return { kind: 'mistakes', mistakes };
  }
  const mistakes: string[] = [];
  const mistake = (path: Path, words: string): void => {
    let place = file;
    for (let length = 0; length <= path.length; length++) {
      const node = document.getIn(['profiles', ...path.slice(0, length)], true);
      if (isNode(node) && node.range) place = at(node.range[0]);
    }
    const name = path.map((part) => (typeof part === 'number' ? `[${part}]` : `.${part}`)).join('');
    mistakes.push(`profiles${name} ${words} (${place})`);
  };
  let content: unknown;
  try {
    content = document.toJS();
  } catch (error) {
    return { kind: 'mistakes', mistakes: [`${file} must be plain YAML: ${errorText(error)}`] };
  }
  const list = isMap(document.contents) ? (content as Record<string, unknown>)['profiles'] : content;
  if (!Array.isArray(list) || list.length > MAX_PROFILES) {
    mistake([], `must be a list of at most ${MAX_PROFILES} profiles, got ${showGot(list)}`);
    return { kind: 'mistakes', mistakes };
  }
  const profiles = list.flatMap((entry: unknown, index) => parseProfile(entry, index, gpuTypeLabel, mistake) ?? []);
  reportTwice(profiles, mistake);
  if (mistakes.length > 0) return { kind: 'mistakes', mistakes };
  return { kind: 'seeds', seeds: createSeeds(profiles, gpuTypeLabel) };
}

function createSeeds(profiles: readonly Profile[], gpuTypeLabel: string | null): EngineSeeds {
  const of = (wanted: Profile['of']['kind']): ReadonlyMap<string, EngineSeed> =>
    new Map(profiles.filter((one) => one.of.kind === wanted).map((one) => [one.of.name, one.seed]));
  const [byEndpoint, byType] = [of('endpoint'), of('gpuType')];
  return {
    nProfiles: profiles.length,
    of({ address, labels }) {
      const type = gpuTypeLabel === null ? undefined : labels[gpuTypeLabel];
      const own = byEndpoint.get(address) ?? NOTHING;
      const kin = (type === undefined ? undefined : byType.get(type)) ?? NOTHING;
      return {
        prefillTokensPerSecond: own.prefillTokensPerSecond ?? kin.prefillTokensPerSecond,
        decodeTokensPerSecond: own.decodeTokensPerSecond ?? kin.decodeTokensPerSecond,
        capacityTokens: own.capacityTokens ?? kin.capacityTokens,
      };
    },
  };
}

type Report = (path: Path, words: string) => void;

function parseProfile(entry: unknown, index: number, gpuTypeLabel: string | null, report: Report): Profile | null {
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) {
    report([index], `must be a map of fields, got ${showGot(entry)}`);
    return null;
  }
  const fields = entry as Readonly<Record<string, unknown>>;
  for (const key of Object.keys(fields).filter((one) => !KNOWN.includes(one))) {
    const nearest = nearestName(key, KNOWN);
    report([index, key], `is not known${nearest === null ? '' : `, the nearest known field is ${nearest}`}`);
  }
  const numberOf = (key: (typeof NUMBERS)[number]): number | null => {
    const value = fields[key];
    if (value === undefined || value === null) return null;
    if (typeof value === 'number' && value > 0 && value <= MAX_NUMBER) return value;
    report([index, key], `must be a number above 0 and at most ${MAX_NUMBER}, got ${showGot(value)}`);
    return null;
  };
  const [prefill, decode, blocks, blockSize] = NUMBERS.map(numberOf);
  const named = NAMES.filter((key) => fields[key] !== undefined);
  const [kind] = named;
  const name = kind === undefined ? undefined : fields[kind];
  if (kind === undefined || named.length > 1 || typeof name !== 'string' || name === '') {
    report(
      [index],
      `must name either a gpuType or an endpoint (ip:port), got ${showGot(kind === undefined ? fields : name)}`,
    );
    return null;
  }
  if (kind === 'gpuType' && gpuTypeLabel === null) {
    report([index, kind], 'needs load.gpuTypeLabel, which says where the GPU of an endpoint is named');
  }
  const seed = {
    prefillTokensPerSecond: prefill ?? null,
    decodeTokensPerSecond: decode ?? null,
    capacityTokens: typeof blocks === 'number' ? blocks * (blockSize ?? DEFAULT_BLOCK_SIZE_TOKENS) : null,
  };
  return { of: { kind, name }, seed };
}

function reportTwice(profiles: readonly Profile[], report: Report): void {
  const first = new Map<string, number>();
  profiles.forEach(({ of: { kind, name } }, index) => {
    const key = `${kind} ${name}`;
    const before = first.get(key);
    if (before === undefined) first.set(key, index);
    else report([index], `names ${key} a second time`);
  });
}
