/**
 * Which session a request belongs to, and where the session was last. `x-session-id` is remembered here;
 * `x-aibrix-session-key` is only hashed, so that every replica answers alike. A header names a session, never an endpoint.
 */
import type { EndpointId } from '../endpoints/endpoint.ts';
import type { PickRequest } from '../extproc/picker.ts';
import { createLruMap } from '../lru-map.ts';

export type Session = { readonly key: number; readonly home: EndpointId | null };

export type Sessions = {
  of(pick: Pick<PickRequest, 'header'>): Session | null;
  /** The request went there. */
  went(pick: Pick<PickRequest, 'header'>, to: EndpointId): void;
};

const REMEMBERED = ['x-session-id', 'x-session-token'];
const HASHED = 'x-aibrix-session-key';
/** About 100 bytes each. The one unused for longest is forgotten first. */
const MAX_SESSIONS = 100_000;

export function createSessions(maxSessions: number = MAX_SESSIONS): Sessions {
  const homes = createLruMap<number, EndpointId>();

  const remembered = (pick: Pick<PickRequest, 'header'>): number | null => {
    for (const name of REMEMBERED) {
      const value = pick.header(name);
      if (value !== undefined && value !== '') return hashText(value);
    }
    return null;
  };

  return {
    of(pick) {
      const key = remembered(pick);
      if (key !== null) return { key, home: homes.get(key) ?? null };
      const value = pick.header(HASHED);
      return value === undefined || value === '' ? null : { key: hashText(value), home: null };
    },
    went(pick, to) {
      const key = remembered(pick);
      if (key === null) return;
      homes.set(key, to);
      if (homes.size > maxSessions) homes.delete(homes.oldest()!.key);
    },
  };
}

/** FNV-1a, 32 bits. Two sessions with one hash share a credit, and nothing else. */
function hashText(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return h >>> 0;
}
