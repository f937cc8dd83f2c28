/**
 * The sequence rules of one event source, without I/O and without a clock: what is connected, received and replayed goes
 * in, what to apply, clear and ask for comes out. Every doubt ends in "not trusted until relearnt".
 *
 * States: unknown (never connected) → replaying (learning from replay) → live ⇄ suspect (a doubt is being cleared up, or
 * the connection is down). Rules it rests on: a publisher numbers its batches without holes; what it sent before a replay
 * was asked for is part of that replay, as far as its buffer reaches; a connection delivers in order. So nothing needs to
 * be kept while no replay runs, and what arrives during one is kept and overlaps.
 *
 * A replay starts at the last batch applied, not behind it: when that batch comes back as another one, or not at all, the
 * publisher is another one, even if its numbers happen to fit.
 */

export type StreamState = 'unknown' | 'replaying' | 'live' | 'suspect';

/**
 * applied: and nothing is missing. cleared: applied, and the publisher holds nothing from before this batch.
 * incomplete: applied but for events that were not understood. refused: no batch; nothing applied.
 */
export type ApplyOutcome = 'applied' | 'cleared' | 'incomplete' | 'refused';

/** ok: to its end. hole: batches missing inside. timeout: no end marker in time. restarted: another publisher answered. */
export type ReplayResult = 'ok' | 'hole' | 'timeout' | 'restarted';

export type EventStreamEffects = {
  apply(payload: Uint8Array, seq: bigint): ApplyOutcome;
  /** Whether `apply` would not refuse it. Asked for batches that come out of turn, before anything is forgotten. */
  isBatch(payload: Uint8Array): boolean;
  /** Forgets every block of the source. */
  clear(): void;
  /** Asks for all batches from `fromSeq` on; `replayStarted` says when the request is on its way. */
  requestReplay(fromSeq: bigint, purpose: ReplayPurpose): void;
  /** Nothing of the replay asked for last is wanted any more. */
  cancelReplay(): void;
  onGap(): void;
  onRestart(): void;
  /** How a replay ended; of probes only what is wrong. */
  onReplay(result: ReplayResult): void;
};

/** learn: everything, after a (re)start. hole: what is missing. probe: is the idle publisher alive and nothing lost? */
export type ReplayPurpose = 'learn' | 'hole' | 'probe';

export type EventStreamOptions = {
  readonly canReplay: boolean;
  /** Longest silence inside a replay. */
  readonly replayTimeoutMs: number;
  /** Replays in a row that bring nothing new before it goes on without them. */
  readonly maxTries: number;
  readonly retryBaseMs: number;
  readonly retryMaxMs: number;
  /** Silence after which a live source is probed: so chosen that a lost tail is found and fetched within 2 s. */
  readonly idleProbeMs: number;
  /** First probe after going live: a batch sent while the subscription took effect is found by it. */
  readonly firstProbeMs: number;
  /** What may be kept while a replay runs. */
  readonly maxBufferedBytes: number;
  /** 0 ≤ random < 1, for jitter. */
  readonly random: () => number;
};

export const DEFAULT_EVENT_STREAM_OPTIONS: EventStreamOptions = {
  canReplay: true,
  replayTimeoutMs: 1000,
  maxTries: 3,
  retryBaseMs: 100,
  retryMaxMs: 10_000,
  idleProbeMs: 1500,
  firstProbeMs: 250,
  maxBufferedBytes: 32 * 1024 * 1024,
  random: Math.random,
};

export type StreamStatus = {
  readonly state: StreamState;
  readonly connected: boolean;
  readonly lastSeq: bigint | null;
  /** Blocks stored before the first batch known here, or lost since, are missing. */
  readonly partial: boolean;
  /** Whether holes can be repaired and a lost tail found. */
  readonly replay: 'works' | 'none' | 'broken';
  /** When the last batch or connection came. */
  readonly lastHeardMs: number | null;
  readonly lastBatchMs: number | null;
  /** When it was last known that nothing is missing: the next batch came, or a replay or probe said that there is none. */
  readonly lastProvenMs: number | null;
  /** Batches that are known to exist and are not applied. */
  readonly behind: number;
};

/** A place in a publisher's stream: the number of a batch, and which batch it was. */
export type StreamMark = { readonly seq: bigint; readonly print: number };

export type EventStream = {
  connected(nowMs: number): void;
  disconnected(nowMs: number): void;
  received(seq: bigint, payload: Uint8Array, nowMs: number): void;
  /** A message that is no batch with a sequence number. */
  garbage(nowMs: number): void;
  replayStarted(nowMs: number): void;
  replayReceived(seq: bigint, payload: Uint8Array, nowMs: number): void;
  replayEnded(nowMs: number): void;
  replayFailed(nowMs: number): void;
  /** The process behind the source is another one. */
  restarted(nowMs: number): void;
  /** To be called several times a second. */
  tick(nowMs: number): void;
  /** What has been applied, to its last batch; null while there is a doubt or nothing. */
  mark(): StreamMark | null;
  /**
   * Forgets a partial view, to put what another replica has applied up to a mark in its place: `adopted` says when it is
   * there. It is suspect until a replay has shown that this publisher sent the batch at the mark, and all that followed.
   * Until `adopted`, `cancelReplay` means that it is not wanted any more, and that nothing more may be filled in.
   * @returns false when there is nothing to gain, or no way to tell whether it is true
   */
  adopt(mark: StreamMark): boolean;
  /** @param result whole, partial: the blocks are filled in, these are all, or not. failed: there are none */
  adopted(result: 'whole' | 'partial' | 'failed'): void;
  status(): StreamStatus;
  state(): StreamState;
  /** Another number whenever `status` may have changed. */
  revision(): number;
};

type Session = {
  readonly purpose: ReplayPurpose;
  /** First batch asked for. */
  readonly from: bigint;
  /** Of batch `from` where it had been applied before; null: nothing to compare with. */
  readonly fromPrint: number | null;
  /** Whether the publisher must have something: a batch of it was seen before. */
  readonly hasBatches: boolean;
  started: boolean;
  deadlineMs: number;
  nReceived: number;
  nApplied: number;
};

type Buffered = { readonly seq: bigint; readonly payload: Uint8Array };

/** Batches that come while no connection is known: the event of the connection is late, or was lost. */
const MISSED_CONNECT_MS = 1000;
/** Doubts, or restarts, further apart than this are unrelated. */
const DOUBT_MEMORY_MS = 5000;
/** The first two restarts in a row are learnt from at once; the wait for the others ends at `retryBaseMs` · 2^3. */
const MAX_RESTART_ATTEMPT = 3;
/** Further ones do not make it wait longer: a flood costs a short replay every one or two seconds. */
const MAX_DOUBTS = 4;

export function createEventStream(
  effects: EventStreamEffects,
  overrides: Partial<EventStreamOptions> = {},
): EventStream {
  const options = { ...DEFAULT_EVENT_STREAM_OPTIONS, ...overrides };
  let state: StreamState = 'unknown';
  let isConnected = false;
  let downSinceMs: number | null = null;
  /** Whether blocks may have been applied since the last clear. */
  let holdsBlocks = false;
  let partial = false;
  let lastApplied: bigint | null = null;
  let lastAppliedPrint = 0;
  /** Newest batch of this connection; null until its first one. */
  let lastLive: bigint | null = null;
  let lastLivePrint = 0;
  let lastHeardMs: number | null = null;
  let lastBatchMs: number | null = null;
  let lastProvenMs: number | null = null;
  let replayBroken = false;
  /** Whether replay has once said all it had, since the last restart. */
  let learnt = false;
  let session: Session | null = null;
  let retry: { readonly purpose: 'learn' | 'hole'; readonly from: bigint; readonly atMs: number } | null = null;
  let nTries = 0;
  let nDoubts = 0;
  let lastDoubtMs = -Infinity;
  let nRestarts = 0;
  let lastRestartMs = -Infinity;
  let nFailedProbes = 0;
  let nBroken = 0;
  let probeAtMs = Infinity;
  let buffered: Buffered[] = [];
  let bufferedBytes = 0;
  let revision = 0;

  const replayUsable = (): boolean => options.canReplay && !replayBroken;
  /** What comes live meanwhile has to wait. */
  const isReplaying = (): boolean => session !== null && session.purpose !== 'probe';

  // --- applying

  const forget = (): void => {
    if (holdsBlocks) effects.clear();
    holdsBlocks = false;
    lastApplied = null;
  };

  /** @returns false when the payload was no batch */
  const apply = (seq: bigint, payload: Uint8Array): boolean => {
    holdsBlocks = true;
    const outcome = effects.apply(payload, seq);
    if (outcome === 'refused') return false;
    if (outcome === 'cleared') partial = false;
    if (outcome === 'incomplete') partial = true;
    lastApplied = seq;
    lastAppliedPrint = fingerprint(payload);
    return true;
  };

  /** The batch is lost for good: whatever it removed may be gone. */
  const skip = (seq: bigint, payload: Uint8Array): void => {
    forget();
    partial = true;
    lastApplied = seq;
    lastAppliedPrint = fingerprint(payload);
  };

  // --- replays

  const aSession = (purpose: ReplayPurpose, from: bigint): Session => ({
    purpose,
    from,
    fromPrint: lastApplied !== null && lastApplied === from ? lastAppliedPrint : null,
    hasBatches: lastLive !== null,
    started: false,
    deadlineMs: Infinity,
    nReceived: 0,
    nApplied: 0,
  });

  const startReplay = (purpose: ReplayPurpose, from: bigint): void => {
    retry = null;
    dropBuffered();
    session = aSession(purpose, from);
    effects.requestReplay(from, purpose);
  };

  const stopReplay = (): void => {
    if (session !== null) effects.cancelReplay();
    session = null;
    retry = null;
  };

  /** Everything from the beginning. @param atMs not before */
  const learn = (atMs = -Infinity): void => {
    stopReplay();
    forget();
    dropBuffered();
    partial = false;
    learnt = false;
    nTries = 0;
    if (!replayUsable()) {
      // The first batch tells whether anything came before it.
      partial = true;
      state = 'live';
      return;
    }
    state = 'replaying';
    if (atMs === -Infinity) startReplay('learn', 0n);
    else retry = { purpose: 'learn', from: 0n, atMs };
  };

  /** Fetches what may be missing behind the last batch applied. */
  const repair = (): void => {
    if (lastApplied === null) {
      state = 'replaying';
      startReplay('learn', 0n);
    } else {
      state = 'suspect';
      startReplay('hole', lastApplied);
    }
  };

  const restart = (nowMs: number): void => {
    nRestarts = nowMs - lastRestartMs > DOUBT_MEMORY_MS ? 0 : nRestarts + 1;
    lastRestartMs = nowMs;
    effects.onRestart();
    lastLive = null;
    // Two publishers under one address would have everything replayed with every batch.
    if (nRestarts < 2) learn();
    else learn(nowMs + backoff(Math.min(nRestarts, MAX_RESTART_ATTEMPT)));
  };

  /** A replay brought less than was asked for. */
  const tryAgain = (ended: Session, result: ReplayResult, nowMs: number): void => {
    effects.onReplay(result);
    nTries = ended.nApplied > 0 ? 1 : nTries + 1;
    state = holdsBlocks ? 'suspect' : 'replaying';
    if (nTries < options.maxTries) {
      const purpose = lastApplied === null ? 'learn' : 'hole';
      retry = { purpose, from: lastApplied ?? 0n, atMs: nowMs + backoff(nTries - 1) };
      return;
    }
    if (result === 'hole' && lastApplied !== null) {
      // The publisher no longer has what is missing: believe only what follows it.
      const next = lastApplied + 1n;
      forget();
      partial = true;
      nTries = 0;
      state = 'replaying';
      retry = { purpose: 'learn', from: next, atMs: nowMs + backoff(0) };
      return;
    }
    goOnWithoutReplay(nowMs);
  };

  const goOnWithoutReplay = (nowMs: number): void => {
    const kept = buffered;
    dropBuffered();
    forget();
    replayBroken = true;
    partial = true;
    nTries = 0;
    state = 'live';
    // Rarely: when it answers, all is learnt anew.
    probeAtMs = nowMs + options.retryMaxMs * 2 ** Math.min(nBroken++, 5);
    for (const { seq, payload } of kept) acceptWithoutReplay(seq, payload);
  };

  const backoff = (attempt: number): number => {
    const ceiling = Math.min(options.retryMaxMs, options.retryBaseMs * 2 ** Math.min(attempt, 20));
    return ceiling / 2 + (options.random() * ceiling) / 2;
  };

  // --- what arrives during a replay

  const dropBuffered = (): void => {
    buffered = [];
    bufferedBytes = 0;
  };

  const keep = (seq: bigint, payload: Uint8Array): void => {
    // What came before the request was on its way is part of the answer.
    if (session === null || !session.started) return;
    // Too much to keep: a hole that the next batch behind it will show.
    if (bufferedBytes + payload.byteLength > options.maxBufferedBytes) return;
    bufferedBytes += payload.byteLength + 64;
    // What was read is valid until the call returns.
    buffered.push({ seq, payload: new Uint8Array(payload) });
  };

  /** Applies what was kept and goes live, or asks again for what is still missing. */
  const goLive = (nowMs: number): void => {
    for (const { seq, payload } of buffered) {
      if (lastApplied !== null && seq <= lastApplied) continue;
      const isNext = lastApplied === null ? seq === 0n : seq === lastApplied + 1n;
      if (isNext && apply(seq, payload)) continue;
      askAgain(nowMs);
      return;
    }
    // Of the newest batch only its number is known: it came before the replay, which ended without it, or was too much to keep.
    if (lastLive !== null && lastLive > (lastApplied ?? -1n)) {
      askAgain(nowMs);
      return;
    }
    dropBuffered();
    nTries = 0;
    state = 'live';
    lastProvenMs = nowMs;
    probeAtMs = nowMs + options.firstProbeMs;
  };

  const askAgain = (nowMs: number): void => {
    nTries++;
    if (nTries <= options.maxTries) repair();
    else goOnWithoutReplay(nowMs);
  };

  // --- live batches

  const acceptLive = (seq: bigint, payload: Uint8Array, nowMs: number): void => {
    if (!replayUsable()) {
      acceptWithoutReplay(seq, payload);
      lastProvenMs = nowMs;
      return;
    }
    const expected = lastApplied === null ? 0n : lastApplied + 1n;
    if (seq < expected) return;
    if (seq === expected) {
      if (apply(seq, payload)) {
        lastProvenMs = nowMs;
        return;
      }
      // Its sequence number is worth no more than its content: ask what the publisher really sent.
      lastLive = null;
      doubt(nowMs);
      return;
    }
    if (lastApplied !== null) effects.onGap();
    repair();
  };

  const acceptWithoutReplay = (seq: bigint, payload: Uint8Array): void => {
    if (lastApplied !== null && seq <= lastApplied) return;
    if (lastApplied === null) partial = seq !== 0n;
    else if (seq !== lastApplied + 1n) {
      effects.onGap();
      forget();
      partial = true;
    }
    state = 'live';
    if (!apply(seq, payload)) skip(seq, payload);
  };

  /** Something arrived that no publisher sends. The first time it is looked into at once, a flood of it ever more rarely. */
  const doubt = (nowMs: number): void => {
    nDoubts = nowMs - lastDoubtMs > DOUBT_MEMORY_MS ? 0 : nDoubts + 1;
    lastDoubtMs = nowMs;
    if (!isConnected) return;
    if (!replayUsable()) {
      state = 'suspect';
      return;
    }
    if (isReplaying() || retry !== null) return;
    if (session !== null) stopReplay();
    if (nDoubts === 0) repair();
    else {
      state = 'suspect';
      const purpose = lastApplied === null ? 'learn' : 'hole';
      retry = { purpose, from: lastApplied ?? 0n, atMs: nowMs + backoff(Math.min(nDoubts, MAX_DOUBTS)) };
    }
  };

  // --- answers to replays

  const replayedBatch = (current: Session, seq: bigint, payload: Uint8Array, nowMs: number): void => {
    current.deadlineMs = nowMs + options.replayTimeoutMs;
    current.nReceived++;
    if (replayBroken) {
      // It answers again. What was missed meanwhile is not known: from the beginning.
      replayBroken = false;
      effects.onReplay('ok');
      learn();
      return;
    }
    if (seq === current.from && current.fromPrint !== null && fingerprint(payload) !== current.fromPrint) {
      effects.onReplay('restarted');
      restart(nowMs);
      return;
    }
    if (lastApplied === null) {
      if (seq > 0n) partial = true;
    } else {
      // Without the batch to compare with, nothing proves that this is the publisher known so far.
      const isUnproved = current.nReceived === 1 && current.fromPrint !== null && seq > current.from;
      if (seq <= lastApplied && !isUnproved) return;
      if (isUnproved || seq !== lastApplied + 1n) {
        stopReplay();
        if (current.purpose === 'probe') effects.onGap();
        tryAgain(current, 'hole', nowMs);
        return;
      }
    }
    current.nApplied++;
    // The same bytes would come again: they are lost.
    if (!apply(seq, payload)) skip(seq, payload);
  };

  const probeEnded = (nowMs: number): void => {
    nFailedProbes = 0;
    lastProvenMs = nowMs;
    probeAtMs = nowMs + options.idleProbeMs;
    if (replayBroken || !learnt) {
      replayBroken = false;
      learn();
    }
  };

  const endOfReplay = (ended: Session, nowMs: number): void => {
    session = null;
    // Not even the batch that was applied last: this publisher never sent it.
    if (ended.nReceived === 0 && ended.fromPrint !== null) {
      effects.onReplay('restarted');
      restart(nowMs);
      return;
    }
    if (ended.purpose === 'learn' && ended.from === 0n && ended.nReceived === 0 && ended.hasBatches) {
      // It keeps nothing of what it sent.
      tryAgain(ended, 'hole', nowMs);
      return;
    }
    if (ended.purpose === 'probe') {
      probeEnded(nowMs);
      return;
    }
    effects.onReplay('ok');
    learnt = true;
    goLive(nowMs);
  };

  const replayGaveUp = (nowMs: number): void => {
    const ended = session;
    if (ended === null) return;
    stopReplay();
    if (ended.purpose !== 'probe') {
      tryAgain(ended, 'timeout', nowMs);
      return;
    }
    effects.onReplay('timeout');
    nFailedProbes++;
    if (nFailedProbes >= options.maxTries) replayBroken = true;
    probeAtMs = nowMs + backoff(nFailedProbes + 2);
  };

  return {
    connected(nowMs) {
      revision++;
      const isFirst = state === 'unknown';
      isConnected = true;
      downSinceMs = null;
      replayBroken = false;
      nFailedProbes = 0;
      nBroken = 0;
      if (isFirst) {
        lastLive = null;
        learn();
      } else restart(nowMs);
      lastHeardMs = nowMs;
    },
    disconnected(nowMs) {
      revision++;
      isConnected = false;
      downSinceMs = nowMs;
      stopReplay();
      dropBuffered();
      if (state !== 'unknown') state = 'suspect';
    },
    received(seq, payload, nowMs) {
      revision++;
      if (!isConnected) {
        // Of the old connection, or of the new one before its event: then the replay will have it.
        downSinceMs ??= nowMs;
        if (nowMs - downSinceMs < MISSED_CONNECT_MS) return;
        this.connected(nowMs);
      }
      lastHeardMs = nowMs;
      const print = fingerprint(payload);
      if (seq === lastLive && print === lastLivePrint) return;
      const isInTurn = lastLive !== null && seq === lastLive + 1n;
      // What is in turn and applied at once is looked into only once.
      const isAppliedNow = isInTurn && !isReplaying() && retry === null;
      if (!isAppliedNow && !effects.isBatch(payload)) {
        // Its number is worth no more than its content: neither a restart nor a gap follows from it, nor that it was ever sent.
        if (isInTurn && isReplaying()) keep(seq, payload);
        else doubt(nowMs);
        return;
      }
      lastBatchMs = nowMs;
      if (lastLive !== null && seq <= lastLive) {
        restart(nowMs);
        if (replayUsable()) return;
      }
      lastLive = seq;
      lastLivePrint = print;
      if (isReplaying()) keep(seq, payload);
      else if (retry === null) acceptLive(seq, payload, nowMs);
      if (state === 'live') probeAtMs = Math.max(probeAtMs, nowMs + options.idleProbeMs);
    },
    garbage(nowMs) {
      revision++;
      doubt(nowMs);
    },
    replayStarted(nowMs) {
      revision++;
      if (session === null) return;
      session.started = true;
      session.deadlineMs = nowMs + options.replayTimeoutMs;
    },
    replayReceived(seq, payload, nowMs) {
      revision++;
      if (session?.started) replayedBatch(session, seq, payload, nowMs);
    },
    replayEnded(nowMs) {
      revision++;
      if (session?.started) endOfReplay(session, nowMs);
    },
    replayFailed(nowMs) {
      revision++;
      replayGaveUp(nowMs);
    },
    restarted(nowMs) {
      revision++;
      if (isConnected) restart(nowMs);
      else {
        forget();
        downSinceMs ??= nowMs;
      }
    },
    tick(nowMs) {
      if (session !== null && nowMs > session.deadlineMs) {
        revision++;
        replayGaveUp(nowMs);
      }
      if (retry !== null && nowMs >= retry.atMs) startReplay(retry.purpose, retry.from);
      // Also a doubt that arose while replay did not answer ends with its next answer, though nothing else comes.
      const isProbed = state === 'live' || (state === 'suspect' && replayBroken);
      if (isProbed && isConnected && options.canReplay && session === null && nowMs >= probeAtMs) {
        startReplay('probe', lastApplied ?? 0n);
      }
    },
    mark() {
      const isSettled = state === 'live' && isConnected && !isReplaying();
      return isSettled && lastApplied !== null ? { seq: lastApplied, print: lastAppliedPrint } : null;
    },
    adopt(mark) {
      if (state !== 'live' || !isConnected || !replayUsable() || !partial) return false;
      if (isReplaying()) return false;
      revision++;
      stopReplay();
      forget();
      dropBuffered();
      state = 'suspect';
      // What comes before the replay is asked for is part of it. Should it never be, what was filled in is true, but not all.
      holdsBlocks = true;
      lastApplied = mark.seq;
      lastAppliedPrint = mark.print;
      nTries = 0;
      session = aSession('hole', mark.seq);
      return true;
    },
    adopted(result) {
      revision++;
      if (result === 'failed') {
        learn();
        return;
      }
      partial = result === 'partial';
      startReplay('hole', lastApplied!);
    },
    revision: () => revision,
    state: () => state,
    status: () => ({
      state,
      connected: isConnected,
      lastSeq: lastApplied,
      partial,
      replay: !options.canReplay ? 'none' : replayBroken ? 'broken' : 'works',
      lastHeardMs,
      lastBatchMs,
      lastProvenMs,
      behind: lastLive === null ? 0 : Math.max(0, Number(lastLive - (lastApplied ?? -1n))),
    }),
  };
}

/** Tells batches apart: they carry their time in the first bytes and differ in length or end nearly always otherwise. */
function fingerprint(payload: Uint8Array): number {
  const n = payload.byteLength;
  let print = 0x811c9dc5 ^ n;
  for (let i = 0; i < Math.min(n, 32); i++) print = Math.imul(print ^ payload[i]!, 0x01000193);
  for (let i = Math.max(n - 32, 32); i < n; i++) print = Math.imul(print ^ payload[i]!, 0x01000193);
  return print >>> 0;
}
