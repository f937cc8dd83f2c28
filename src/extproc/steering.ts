/**
 * What an answer does to the headers of a request: the choice is set, and what a client wrote to steer is overwritten or
 * removed. All of it within the limits Envoy has for a request. When an answer may change headers is request-side.ts.
 */
import type { HeaderChange, HeaderMap } from './messages.ts';
import { DATA_PARALLEL_RANK, DESTINATION, TARGET_POD } from './protocol.ts';

/** Where the request goes: `destination` as the header says it, or wherever Envoy's own policy sends it. */
export type Choice =
  | {
      readonly kind: 'routed';
      readonly destination: string;
      readonly first: string;
      /** Null = any behind the address. */
      readonly dataParallelRank: number | null;
    }
  | { readonly kind: 'pass' };

export type SteeringOptions = {
  readonly destinationHeader: string;
  readonly targetPodHeader: 'set' | 'off';
};

export type Steering = {
  /** What of these headers steers, to be removed before there is a choice; null = nothing of it is there. */
  removal(headers: HeaderMap): HeaderChange | null;
  /** @param headers null where they are not shown; @returns null for no change at all */
  change(headers: HeaderMap | null, choice: Choice): HeaderChange | null;
  /** What steers is there and cannot be removed: Envoy would answer any change of so many headers with a 500. */
  isStuck(headers: HeaderMap): boolean;
};

/**
 * Envoy's defaults. A request that is above one of them after a change ends in Envoy's own 500, also with
 * `failure_mode_allow` and even if the change made it smaller; and it comes to us above them, since a client may send as
 * much and Envoy adds to it.
 */
export const ENVOY_LIMITS = { maxHeaders: 100, maxHeaderBytes: 60 * 1024 } as const;

/** What steers, whatever the configured name. */
const CONTROL_HEADERS: readonly string[] = [DESTINATION, TARGET_POD, DATA_PARALLEL_RANK];

type Field = readonly [name: string, value: string];

export function createSteering({ destinationHeader, targetPodHeader }: SteeringOptions): Steering {
  const control = CONTROL_HEADERS.includes(destinationHeader)
    ? CONTROL_HEADERS
    : [destinationHeader, ...CONTROL_HEADERS];

  const seenIn = (headers: HeaderMap): readonly string[] => control.filter((name) => headers.get(name) !== undefined);

  function fieldsOf(choice: Choice): Field[] {
    if (choice.kind === 'pass') return [];
    const set: Field[] = [[destinationHeader, choice.destination]];
    if (targetPodHeader === 'set') set.push([TARGET_POD, choice.first]);
    if (choice.dataParallelRank !== null) set.push([DATA_PARALLEL_RANK, String(choice.dataParallelRank)]);
    return set;
  }

  function change(headers: HeaderMap | null, choice: Choice): HeaderChange | null {
    let set: readonly Field[] = fieldsOf(choice);
    const seen = headers === null ? control : seenIn(headers);
    // Headers withheld from this filter by `forward_rules` may be there all the same: without a choice all names go.
    let remove = choice.kind === 'routed' ? seen : control;
    if (headers !== null && !fits(headers, seen, set)) {
      // The metadata says the same of the destination, and any rank can compute it.
      set = [];
      if (!fits(headers, seen, set)) return null;
      remove = seen;
    }
    return { set, remove: remove.filter((name) => set.every(([key]) => key !== name)) };
  }

  return {
    removal(headers) {
      const remove = seenIn(headers);
      return remove.length > 0 ? { set: [], remove } : null;
    },
    change,
    isStuck(headers) {
      if (fits(headers, [], [])) return false;
      const seen = seenIn(headers);
      return seen.length > 0 && !fits(headers, seen, []);
    },
  };
}

/** Whether Envoy takes the headers without those of these names and with these fields. */
function fits(headers: HeaderMap, without: readonly string[], fields: readonly Field[]): boolean {
  let { count, bytes } = headers;
  for (const name of without) {
    count -= 1;
    bytes -= sizeOf(name, headers.get(name) ?? '');
  }
  for (const [name, value] of fields) {
    count += 1;
    bytes += sizeOf(name, value);
  }
  return count <= ENVOY_LIMITS.maxHeaders && bytes <= ENVOY_LIMITS.maxHeaderBytes;
}

const sizeOf = (name: string, value: string): number => name.length + Buffer.byteLength(value);
