/**
 * How an index of KV blocks is usually written, as the measure to compare with: msgpackr into objects, a hash over plain
 * arrays, `Map<bigint, Set<string>>`.
 */
import { Unpackr } from 'msgpackr';

export type UsualIndex = {
  /** Decodes one payload, hashes and stores or removes what it says. */
  ingest(payload: Buffer, pod: string): void;
  store(key: bigint, pod: string): void;
  remove(key: bigint, pod: string): void;
  /** Blocks each pod holds from the start on. */
  find(keys: readonly bigint[]): Map<string, number>;
};

const unpackr = new Unpackr({ int64AsType: 'bigint', useRecords: false, mapsAsObjects: true });
type Event =
  | { type: 'BlockStored'; block_hashes: bigint[]; token_ids: number[]; block_size: number }
  | { type: 'BlockRemoved'; block_hashes: bigint[] };

export function unpackUsually(payload: Buffer): readonly Event[] {
  return (unpackr.unpack(payload) as [number, Event[]])[1];
}

export function createUsualIndex(): UsualIndex {
  const pods = new Map<bigint, Set<string>>();
  const store = (key: bigint, pod: string): void => {
    let holders = pods.get(key);
    if (holders === undefined) pods.set(key, (holders = new Set()));
    holders.add(pod);
  };
  const remove = (key: bigint, pod: string): void => {
    const holders = pods.get(key);
    if (holders === undefined) return;
    holders.delete(pod);
    if (holders.size === 0) pods.delete(key);
  };
  /** Engine hash → own key. */
  const names = new Map<bigint, bigint>();
  return {
    store,
    remove,
    ingest(payload, pod) {
      for (const event of unpackUsually(payload)) {
        if (event.type === 'BlockRemoved') {
          for (const name of event.block_hashes) {
            const key = names.get(name);
            if (key !== undefined) remove(key, pod);
          }
          continue;
        }
        const { token_ids: tokenIds, block_size: size } = event;
        let h = 1;
        let l = 2;
        for (let at = 0; at + size <= tokenIds.length; at += size) {
          for (let i = at; i < at + size; i++) {
            h = Math.imul(h ^ tokenIds[i]!, 0x9e3779b1);
            l = Math.imul(l ^ tokenIds[i]!, 0x5f356495);
            h = (h << 13) | (h >>> 19);
            l = (l << 11) | (l >>> 21);
          }
          const key = (BigInt(h >>> 0) << 32n) | BigInt(l >>> 0);
          names.set(event.block_hashes[at / size]!, key);
          store(key, pod);
        }
      }
    },
    find(keys) {
      const matched = new Map<string, number>();
      let left: string[] | null = null;
      for (let i = 0; i < keys.length; i++) {
        const holders = pods.get(keys[i]!);
        if (holders === undefined) break;
        left = left === null ? [...holders] : left.filter((pod) => holders.has(pod));
        if (left.length === 0) break;
        for (const pod of left) matched.set(pod, i + 1);
      }
      return matched;
    },
  };
}
