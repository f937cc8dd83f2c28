/**
 * What is known of one resource and what to ask next: list and watch as arithmetic. Deliberately without I/O, clock and
 * chance; reflector.ts performs the requests and the waits.
 *
 * Rules held here: the version is taken from every event, bookmarks included; "expired" in any form leads to a new full
 * reading, any other error to a new watch from the same version; a full reading takes the place of what was known only
 * when it is complete.
 */
import type { ApiFailure } from './api-client.ts';
import { compareVersions, listOf, metaOf, recordOf, statusOf, textOf } from './objects.ts';

export type NextRequest =
  /** Everything and then what changes, in one stream. */
  | { readonly kind: 'watch-list' }
  | { readonly kind: 'list'; readonly continueToken: string | null }
  | { readonly kind: 'watch'; readonly resourceVersion: string };

/** Why everything is read anew. `backwards`: versions went back, as after a restore of etcd; `missing`: the resource was. */
export type RelistReason = 'start' | 'expired' | 'backwards' | 'ahead' | 'missing' | 'periodic' | 'unreadable';

export type Applied =
  | { readonly kind: 'unchanged' }
  | { readonly kind: 'changed' }
  /** A full reading is complete and has taken the place of what was known. */
  | { readonly kind: 'synced'; readonly reason: RelistReason }
  /** The request must end here, as after the failure. */
  | ApiFailure;

export type ReflectorState<T> = {
  next(): NextRequest;
  /** One page of a list. `unchanged`: there are more pages. */
  page(json: unknown): Applied;
  /** One line of a watch. */
  line(text: string): Applied;
  /** The request failed, also where `page` or `line` said so. */
  failed(failure: ApiFailure): void;
  /** The watch was ended by the server, as it may be at any time. */
  ended(): void;
  /** The next request reads everything. */
  expire(reason: RelistReason): void;
  isSynced(): boolean;
  /** What was known when the last full reading was complete, and the changes since. Equal objects stay the same ones. */
  values(): readonly T[];
};

/** @param read takes what is needed of an object; the rest is not kept */
export function createReflectorState<T>(read: (object: unknown) => T): ReflectorState<T> {
  type Known = { readonly uid: string; readonly value: T; readonly text: string };
  let known = new Map<string, Known>();
  /** Null = the next request reads everything. */
  let version: string | null = null;
  let reason: RelistReason = 'start';
  let isSynced = false;
  let full: 'watch-list' | 'list' = 'watch-list';
  /** The full reading under way. */
  let incoming: Map<string, Known> | null = null;
  let continueToken: string | null = null;

  function forgetIncoming(): void {
    incoming = null;
    continueToken = null;
  }

  function expire(why: RelistReason): void {
    forgetIncoming();
    if (version !== null) reason = why;
    version = null;
  }

  function complete(newVersion: string): Applied {
    known = incoming ?? new Map<string, Known>();
    version = newVersion;
    isSynced = true;
    forgetIncoming();
    return { kind: 'synced', reason };
  }

  function keep(into: Map<string, Known>, name: string, uid: string, object: unknown): 'same' | 'other' {
    const value = read(object);
    const text = JSON.stringify(value);
    const before = known.get(name);
    const isSame = before !== undefined && before.uid === uid && before.text === text;
    into.set(name, isSame ? before : { uid, value, text });
    return isSame ? 'same' : 'other';
  }

  /** Versions of one watch only grow; a smaller one means that the server knows less than it did. */
  function advance(to: string): ApiFailure | null {
    const order = version === null ? 1 : compareVersions(to, version);
    if (order !== null && order < 0) {
      const message = `resource version went backwards: ${to} after ${version}`;
      expire('backwards');
      return doubt(message);
    }
    version = to;
    return null;
  }

  function change(type: string, object: unknown): Applied {
    const meta = metaOf(object);
    if (meta === null) return doubt('an object must have name, uid and resourceVersion');
    const { name, uid } = meta;
    // Initial objects come in no order of versions: until the end is marked, there is no version to take.
    const target = incoming ?? known;
    const backwards = incoming === null ? advance(meta.resourceVersion) : null;
    if (backwards !== null) return backwards;
    let isChanged: boolean;
    if (type === 'DELETED') {
      // Another uid is the next object of that name; it has not gone.
      isChanged = target.get(name)?.uid === uid && target.delete(name);
    } else {
      isChanged = keep(target, name, uid, object) === 'other';
    }
    return { kind: isChanged && incoming === null ? 'changed' : 'unchanged' };
  }

  function bookmark(object: unknown): Applied {
    const metadata = recordOf(recordOf(object).metadata);
    const at = textOf(metadata.resourceVersion);
    if (at === '') return doubt('a bookmark must have a resourceVersion');
    if (incoming === null) return advance(at) ?? { kind: 'unchanged' };
    const isEnd = recordOf(metadata.annotations)['k8s.io/initial-events-end'] === 'true';
    return isEnd ? complete(at) : { kind: 'unchanged' };
  }

  return {
    next() {
      if (version !== null) return { kind: 'watch', resourceVersion: version };
      incoming ??= new Map<string, Known>();
      return full === 'list' ? { kind: 'list', continueToken } : { kind: 'watch-list' };
    },
    page(json) {
      const page = recordOf(json);
      const metadata = recordOf(page.metadata);
      const at = textOf(metadata.resourceVersion);
      if (!Array.isArray(page.items) || at === '') return doubt('a list must have items and a resourceVersion');
      incoming ??= new Map<string, Known>();
      for (const item of listOf(page.items)) {
        const meta = metaOf(item);
        if (meta === null) return doubt('an object must have name, uid and resourceVersion');
        keep(incoming, meta.name, meta.uid, item);
      }
      continueToken = textOf(metadata.continue) || null;
      return continueToken === null ? complete(at) : { kind: 'unchanged' };
    },
    line(text) {
      let event: Readonly<Record<string, unknown>>;
      try {
        event = recordOf(JSON.parse(text));
      } catch {
        return doubt('a watch event must be JSON');
      }
      switch (event.type) {
        case 'ADDED':
        case 'MODIFIED':
        case 'DELETED':
          return change(event.type, event.object);
        case 'BOOKMARK':
          return bookmark(event.object);
        case 'ERROR':
          return failureOf(event.object);
        default:
          return doubt(`a watch event must be of a known type, got ${JSON.stringify(event.type) ?? 'none'}`);
      }
    },
    failed({ cause }) {
      switch (cause) {
        case 'expired':
          return expire('expired');
        case 'invalid':
          // Servers without watch-list refuse its parameters in several ways; nothing else of ours can be invalid.
          if (version === null) full = 'list';
          return version === null ? forgetIncoming() : expire('unreadable');
        case 'version_ahead':
          return expire('ahead');
        case 'not_found':
          // Whatever comes back under this name may be another resource.
          return expire('missing');
        default:
          // The pages of a list so far stay good as long as the server takes their token.
          if (incoming === null || full === 'list') return;
          forgetIncoming();
          // Silence may mean that the server does not know how to mark the end.
          if (cause === 'timeout') full = 'list';
      }
    },
    ended() {
      // A server that takes the parameters and does not know them never marks the end.
      if (incoming !== null && full === 'watch-list') full = 'list';
      forgetIncoming();
    },
    expire,
    isSynced: () => isSynced,
    values: () => Array.from(known.values(), ({ value }) => value),
  };
}

function failureOf(object: unknown): ApiFailure {
  const { code, reason, message, causes } = statusOf(object);
  const text = message === '' ? `error ${code} in the watch` : message;
  if (code === 410 || reason === 'Expired' || reason === 'Gone') return failure('expired', text);
  // The server has not got that far, and never will where its etcd was restored from a backup.
  if (causes.includes('ResourceVersionTooLarge')) return failure('version_ahead', text);
  return failure('server_error', text);
}

function doubt(message: string): ApiFailure {
  return failure('bad_answer', message);
}

function failure(cause: ApiFailure['cause'], message: string): ApiFailure {
  return { kind: 'failed', cause, message, retryAfterMs: null };
}
