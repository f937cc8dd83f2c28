import { describe, expect, test } from '@jest/globals';
import { createEventStream, type ApplyOutcome, type EventStreamOptions } from '../../../src/kvevents/event-stream.ts';

/** A stream whose effects are written down, e.g. `replay learn 0`, `apply 5`, `clear`. */
function aStream(options: Partial<EventStreamOptions> = {}, outcome: (text: string) => ApplyOutcome = () => 'applied') {
  const done: string[] = [];
  let nowMs = 0;
  const stream = createEventStream(
    {
      apply(payload, seq) {
        done.push(`apply ${seq}`);
        return outcome(Buffer.from(payload).toString());
      },
      isBatch: (payload) => outcome(Buffer.from(payload).toString()) !== 'refused',
      clear: () => done.push('clear'),
      requestReplay: (from, purpose) => done.push(`replay ${purpose} ${from}`),
      cancelReplay: () => done.push('cancel'),
      onGap: () => done.push('gap'),
      onRestart: () => done.push('restart'),
      onReplay: (result) => done.push(`replay ${result}`),
    },
    { random: () => 0, ...options },
  );
  const bytes = (seq: number, life: string): Buffer => Buffer.from(`batch ${seq} of ${life}`);
  const self = {
    stream,
    live(seq: number, life = 'a') {
      stream.received(BigInt(seq), bytes(seq, life), nowMs);
      return self;
    },
    raw(seq: number, text: string) {
      stream.received(BigInt(seq), Buffer.from(text), nowMs);
      return self;
    },
    /** The whole answer to a replay. */
    replayed(seqs: readonly number[], life = 'a') {
      stream.replayStarted(nowMs);
      for (const seq of seqs) stream.replayReceived(BigInt(seq), bytes(seq, life), nowMs);
      stream.replayEnded(nowMs);
      return self;
    },
    pass(ms: number) {
      nowMs += ms;
      stream.tick(nowMs);
      return self;
    },
    connected() {
      stream.connected(nowMs);
      return self;
    },
    disconnected() {
      stream.disconnected(nowMs);
      return self;
    },
    garbage() {
      stream.garbage(nowMs);
      return self;
    },
    /** What was done since the last call. */
    did: () => done.splice(0),
    state: () => stream.status().state,
  };
  return self;
}

function aLiveStream(options: Partial<EventStreamOptions> = {}, outcome?: (text: string) => ApplyOutcome) {
  const it = aStream(options, outcome).connected().replayed([0, 1, 2]).live(3);
  it.did();
  return it;
}

describe('starting', () => {
  test('everything is asked for once the connection stands, and what came meanwhile overlaps', () => {
    const it = aStream().connected();
    expect(it.state()).toBe('replaying');
    expect(it.did()).toEqual(['replay learn 0']);
    it.stream.replayStarted(0);
    it.live(2).live(3);
    it.replayed([0, 1, 2]);
    expect(it.did()).toEqual(['apply 0', 'apply 1', 'apply 2', 'replay ok', 'apply 3']);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 3n, partial: false });
  });

  test('a replay that begins late leaves a partial view', () => {
    const it = aStream().connected().replayed([40, 41]);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 41n, partial: true });
  });

  test('a clear inside the stream makes a partial view complete', () => {
    const it = aStream({}, (text) => (text.startsWith('batch 42') ? 'cleared' : 'applied'));
    it.connected().replayed([40, 41]).live(42);
    expect(it.stream.status()).toMatchObject({ lastSeq: 42n, partial: false });
  });

  test('a publisher that has sent nothing is live at once', () => {
    const it = aStream().connected().replayed([]);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: null, partial: false });
    it.did();
    expect(it.live(0).did()).toEqual(['apply 0']);
  });

  test('a publisher that keeps nothing for replay is followed without, and the view is partial', () => {
    const it = aStream().connected().replayed([]).live(7);
    for (let i = 0; i < 3; i++) it.pass(1000).replayed([]);
    it.live(8).live(9);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 9n, partial: true, replay: 'broken' });
  });

  test('a publisher without replay socket is live with its first batch, partial unless that is batch 0', () => {
    const late = aStream({ canReplay: false }).connected().live(5);
    expect(late.stream.status()).toMatchObject({ state: 'live', lastSeq: 5n, partial: true, replay: 'none' });
    const early = aStream({ canReplay: false }).connected().live(0);
    expect(early.stream.status()).toMatchObject({ state: 'live', lastSeq: 0n, partial: false });
  });
});

describe('holes', () => {
  test('3 then 6: what lies between is fetched and applied before 6, and duplicates are dropped', () => {
    const it = aLiveStream().live(6);
    expect(it.state()).toBe('suspect');
    expect(it.did()).toEqual(['gap', 'replay hole 3']);
    it.replayed([3, 4, 5, 6]).live(5 + 2);
    expect(it.did()).toEqual(['apply 4', 'apply 5', 'apply 6', 'replay ok', 'apply 7']);
    expect(it.live(7).did()).toEqual([]);
    expect(it.state()).toBe('live');
  });

  test('a replay with a hole of its own is asked for again from there', () => {
    const it = aLiveStream().live(9);
    it.replayed([3, 4, 7]);
    expect(it.did()).toEqual(['gap', 'replay hole 3', 'apply 4', 'cancel', 'replay hole']);
    expect(it.state()).toBe('suspect');
    expect(it.pass(100).did()).toEqual(['replay hole 4']);
    it.replayed([4, 5, 6, 7, 8, 9]);
    expect(it.state()).toBe('live');
  });

  test('a replay that ends before the newest batch known of is not the end', () => {
    const it = aLiveStream().live(9);
    it.replayed([3, 4, 5]);
    expect(it.did()).toEqual(['gap', 'replay hole 3', 'apply 4', 'apply 5', 'replay ok', 'replay hole 5']);
    expect(it.stream.status()).toMatchObject({ state: 'suspect', behind: 4 });
    it.replayed([5, 6, 7, 8, 9]);
    expect(it.stream.status()).toMatchObject({ state: 'live', behind: 0 });
  });

  test('one that always does is given up after three tries', () => {
    const it = aLiveStream().live(9);
    for (let i = 0; i < 4; i++) it.replayed([3]);
    expect(it.stream.status()).toMatchObject({ state: 'live', replay: 'broken', partial: true });
  });

  test('what the publisher no longer has is given up after three tries: only what follows is believed', () => {
    const it = aLiveStream().live(90);
    for (let i = 0; i < 3; i++) it.replayed([80, 81]).pass(1000);
    expect(it.did().filter((what) => !what.startsWith('cancel'))).toEqual([
      'gap',
      'replay hole 3',
      'replay hole',
      'replay hole 3',
      'replay hole',
      'replay hole 3',
      'replay hole',
      'clear',
      'replay learn 4',
    ]);
    it.replayed([89, 90]);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 90n, partial: true });
  });

  test('a replay without end marker ends after a silence, and what it brought stays', () => {
    const it = aLiveStream().live(6);
    it.stream.replayStarted(0);
    it.stream.replayReceived(3n, Buffer.from('batch 3 of a'), 0);
    it.stream.replayReceived(4n, Buffer.from('batch 4 of a'), 0);
    it.did();
    expect(it.pass(1001).did()).toEqual(['cancel', 'replay timeout']);
    expect(it.pass(100).did()).toEqual(['replay hole 4']);
  });

  test('a replay socket that never answers: three tries, then live without it, believing only what follows', () => {
    const it = aStream().connected();
    for (let i = 0; i < 3; i++) {
      it.stream.replayStarted(i * 1300);
      it.pass(1100).pass(200);
    }
    it.live(50);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 50n, partial: true, replay: 'broken' });
    it.live(52);
    expect(it.did().slice(-3)).toEqual(['gap', 'clear', 'apply 52']);
  });

  test('without replay a gap forgets everything before it', () => {
    const it = aStream({ canReplay: false }).connected().live(0).live(1).live(3);
    expect(it.did()).toEqual(['apply 0', 'apply 1', 'gap', 'clear', 'apply 3']);
    expect(it.stream.status().partial).toBe(true);
  });
});

test('27: 5 then 8 fetches 6 and 7 and applies them before 8, duplicates are dropped; then 2 relearns', () => {
  const it = aStream().connected().replayed([0, 1, 2, 3, 4, 5]);
  it.did();
  it.live(8);
  expect(it.did()).toEqual(['gap', 'replay hole 5']);
  it.replayed([5, 6, 7, 8]).live(8).live(9);
  expect(it.did()).toEqual(['apply 6', 'apply 7', 'apply 8', 'replay ok', 'apply 9']);
  it.live(2, 'b');
  expect(it.did()).toEqual(['restart', 'clear', 'replay learn 0']);
});

describe('restarts', () => {
  test('5 then 2 forgets the source and learns it again', () => {
    const it = aLiveStream().live(4).live(5);
    it.did();
    it.live(2, 'b');
    expect(it.did()).toEqual(['restart', 'clear', 'replay learn 0']);
    expect(it.state()).toBe('replaying');
    it.replayed([0, 1, 2], 'b');
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 2n, partial: false });
  });

  test('the same number with other content is another publisher', () => {
    const it = aLiveStream().live(3, 'b');
    expect(it.did()).toEqual(['restart', 'clear', 'replay learn 0']);
  });

  test('a lost connection is a doubt, a new one a restart, whatever the numbers say', () => {
    const it = aLiveStream().disconnected();
    expect(it.state()).toBe('suspect');
    it.connected();
    expect(it.did()).toEqual(['restart', 'clear', 'replay learn 0']);
    it.replayed([0, 1, 2, 3, 4, 5], 'b').live(6, 'b');
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 6n });
  });

  test('a publisher that has passed the old number is recognised by the batch applied last', () => {
    const it = aLiveStream().live(9, 'b').replayed([3, 4, 5, 6, 7, 8, 9], 'b');
    expect(it.did()).toEqual([
      'gap',
      'replay hole 3',
      'replay restarted',
      'restart',
      'cancel',
      'clear',
      'replay learn 0',
    ]);
  });

  test('a publisher that no longer knows the batch applied last is another one', () => {
    const it = aLiveStream().pass(3000);
    expect(it.did()).toEqual(['replay probe 3']);
    it.replayed([]);
    expect(it.did()).toEqual(['replay restarted', 'restart', 'clear', 'replay learn 0']);
  });

  test('being told of another process forgets the source at once', () => {
    const it = aLiveStream();
    it.stream.restarted(0);
    expect(it.did()).toEqual(['restart', 'clear', 'replay learn 0']);
    it.replayed([0], 'b').disconnected();
    it.did();
    it.stream.restarted(0);
    expect(it.did()).toEqual(['clear']);
  });
});

describe('silence', () => {
  test('an idle source is probed, and a complete one stays live', () => {
    const it = aLiveStream().pass(2100);
    expect(it.did()).toEqual(['replay probe 3']);
    it.replayed([3]);
    expect(it.did()).toEqual([]);
    expect(it.state()).toBe('live');
    expect(it.pass(1000).did()).toEqual([]);
    expect(it.pass(1100).did()).toEqual(['replay probe 3']);
  });

  test('a lost tail is found by the probe', () => {
    const it = aLiveStream().pass(2100).replayed([3, 4, 5]);
    expect(it.did()).toEqual(['replay probe 3', 'apply 4', 'apply 5']);
    expect(it.live(4).live(5).live(6).did()).toEqual(['apply 6']);
  });

  test('live batches go on being applied while a probe runs', () => {
    const it = aLiveStream().pass(2100);
    it.live(4);
    it.replayed([3, 4]);
    expect(it.did()).toEqual(['replay probe 3', 'apply 4']);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 4n });
  });

  test('a probe that is never answered three times means that losses stay unseen', () => {
    const it = aLiveStream();
    for (let i = 0; i < 3; i++) {
      it.pass(5000);
      it.stream.replayStarted(5000 + i * 6100);
      it.pass(1100);
    }
    expect(it.stream.status()).toMatchObject({ state: 'live', replay: 'broken' });
  });
});

describe('what is not understood', () => {
  test('a garbage message is a doubt until the publisher says that nothing is missing', () => {
    const it = aLiveStream().garbage();
    expect(it.state()).toBe('suspect');
    expect(it.did()).toEqual(['replay hole 3']);
    it.replayed([3]);
    expect(it.state()).toBe('live');
    expect(it.did()).toEqual(['replay ok']);
  });

  test('a flood of garbage does not become a flood of replays', () => {
    const it = aLiveStream();
    for (let i = 0; i < 200; i++) {
      it.garbage().pass(10);
      if (it.did().some((what) => what.startsWith('replay hole'))) it.replayed([3]);
    }
    expect(it.did().length).toBeLessThan(10);
    expect(it.pass(10_000).state()).not.toBe('live');
    it.replayed([3]);
    expect(it.state()).toBe('live');
  });

  test('a batch that is refused is asked for once more, then given up with everything before it', () => {
    const it = aLiveStream({}, (text) => (text.startsWith('broken') ? 'refused' : 'applied')).raw(4, 'broken');
    expect(it.state()).toBe('suspect');
    expect(it.did()).toEqual(['apply 4', 'replay hole 3']);
    it.stream.replayStarted(0);
    it.stream.replayReceived(3n, Buffer.from('batch 3 of a'), 0);
    it.stream.replayReceived(4n, Buffer.from('broken'), 0);
    it.stream.replayReceived(5n, Buffer.from('batch 5 of a'), 0);
    it.stream.replayEnded(0);
    expect(it.did()).toEqual(['apply 4', 'clear', 'apply 5', 'replay ok']);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 5n, partial: true });
  });

  test('a refused message that no publisher sent costs nothing but the question', () => {
    const it = aLiveStream({}, (text) => (text === 'broken' ? 'refused' : 'applied'))
      .raw(4, 'broken')
      .replayed([3]);
    it.live(4);
    expect(it.did()).toEqual(['apply 4', 'replay hole 3', 'replay ok', 'apply 4']);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 4n, partial: false });
  });
});

describe('floods', () => {
  const refuseBroken = (text: string): ApplyOutcome => (text.startsWith('broken') ? 'refused' : 'applied');

  test.each(['replay', 'no replay'])('bad payloads under old or far numbers are neither restarts nor gaps (%s)', (replay) => {
    const it = aStream({ canReplay: replay === 'replay' }, refuseBroken).connected();
    if (replay === 'replay') it.replayed([0, 1, 2]);
    it.live(3);
    it.did();
    for (let i = 0; i < 100; i++) it.raw(i % 2 === 0 ? 1 : 1e9 + i, `broken ${i}`);
    expect(it.did().filter((what) => what === 'restart' || what === 'gap' || what === 'clear')).toEqual([]);
    expect(it.state()).toBe('suspect');
    if (replay === 'replay') it.replayed([3]);
    it.live(4);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 4n });
  }); // prettier-ignore

  test('bad payloads in turn from a publisher without replay: forgotten once, no restarts', () => {
    const it = aStream({ canReplay: false }, refuseBroken).connected().live(3);
    it.did();
    for (let seq = 4; seq < 50; seq++) it.raw(seq, `broken ${seq}`);
    expect(it.did().filter((what) => !what.startsWith('apply') && what !== 'clear')).toEqual([]);
    expect(it.live(50).stream.status()).toMatchObject({ state: 'live', lastSeq: 50n, partial: true });
  });

  test('two publishers under one address do not have everything replayed with every batch', () => {
    const it = aLiveStream();
    for (let i = 0; i < 200; i++)
      it.live(10 + i, 'a')
        .pass(5)
        .live(i, 'b')
        .pass(5);
    const did = it.did();
    expect(did.filter((what) => what.startsWith('replay learn')).length).toBeLessThan(12);
    expect(it.state()).not.toBe('live');
    for (let i = 0; i < 5; i++) it.pass(1000).replayed([0, 1, 2], 'c').pass(1000);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 2n });
  });
});

test('a doubt that arises while replay does not answer ends when it answers again', () => {
  const it = aStream().connected();
  for (let i = 0; i < 3; i++) {
    it.stream.replayStarted(i * 1300);
    it.pass(1100).pass(200);
  }
  it.live(0).garbage();
  expect([it.state(), it.stream.status().replay]).toEqual(['suspect', 'broken']);
  it.did();
  it.pass(60_000);
  expect(it.did()).toEqual(['replay probe 0']);
  it.replayed([0]);
  expect(it.did()).toEqual(['replay ok', 'cancel', 'clear', 'replay learn 0']);
  it.replayed([0]);
  expect(it.stream.status()).toMatchObject({ state: 'live', replay: 'works', partial: false });
});

describe('lag and age are known continuously', () => {
  test('how many batches are known to exist and are not applied', () => {
    const it = aLiveStream().live(4);
    expect(it.stream.status().behind).toBe(0);
    it.live(9);
    expect(it.stream.status()).toMatchObject({ state: 'suspect', behind: 5 });
    it.replayed([4, 5, 6, 7, 8, 9]);
    expect(it.stream.status()).toMatchObject({ state: 'live', behind: 0 });
  });

  test('an idle publisher that answers stays proven, a dead one does not', () => {
    const it = aLiveStream();
    expect(it.stream.status()).toMatchObject({ lastBatchMs: 0, lastProvenMs: 0 });
    it.pass(2100).replayed([3]);
    expect(it.stream.status()).toMatchObject({ lastBatchMs: 0, lastProvenMs: 2100 });
    it.pass(2100);
    it.stream.replayStarted(4200);
    it.pass(1100);
    expect(it.stream.status()).toMatchObject({ state: 'live', lastBatchMs: 0, lastProvenMs: 2100 });
  });

  test('a heartbeat is a batch like any other', () => {
    const it = aLiveStream().pass(1200).live(4);
    expect(it.stream.status()).toMatchObject({ lastSeq: 4n, lastBatchMs: 1200, lastProvenMs: 1200 });
    expect(it.pass(1200).did()).toEqual(['apply 4']);
  });
});

test('what arrives during a replay is kept up to a bound; the rest is fetched', () => {
  const it = aStream({ maxBufferedBytes: 300 }).connected();
  it.stream.replayStarted(0);
  for (let seq = 1; seq <= 50; seq++) it.live(seq);
  it.did();
  it.replayed([0]);
  expect(it.did().slice(-2)).toEqual(['apply 4', 'replay hole 4']);
  expect(it.state()).toBe('suspect');
  it.replayed(Array.from({ length: 47 }, (_, i) => 4 + i));
  expect(it.stream.status()).toMatchObject({ state: 'live', lastSeq: 50n });
});

test('what is kept is a copy: the memory a batch was read into is used again', () => {
  const applied: string[] = [];
  const it = aStream({}, (text) => {
    applied.push(text);
    return 'applied';
  }).connected();
  it.stream.replayStarted(0);
  const read = Buffer.from('batch 0');
  it.stream.received(0n, read, 0);
  read.write('ecalper');
  applied.length = 0;
  it.stream.replayEnded(0);
  expect(applied).toEqual(['batch 0']);
});
