/** Every fault of kv-faults.ts once, on simulated pods over real sockets; test/chaos/kv-faults.test.ts mixes them for long. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { startKvFleet, type KvFleet } from '../support/kv-fleet.ts';
import { KV_FAULTS } from '../support/kv-faults.ts';

const STREAM = { idleProbeMs: 300, firstProbeMs: 50, replayTimeoutMs: 300, retryMaxMs: 1000 };

describe('after a fault the index equals what every pod holds, and meanwhile nothing is promised that was not announced', () => {
  let fleet: KvFleet;
  const tookMs: string[] = [];

  beforeAll(async () => {
    fleet = await startKvFleet({ stream: STREAM });
    for (const pod of fleet.pods) await fleet.work(pod, 30);
    await fleet.untilEqual();
  });

  afterAll(async () => {
    await fleet.stop();
    process.stdout.write(`\nms from the end of the fault until equal\n${tookMs.join('\n')}\n`);
  });

  test.each(KV_FAULTS.filter(({ loses }) => loses === undefined).map((fault) => [fault.name, fault] as const))(
    '%s',
    async (name, fault) => {
      const before = fleet.nPromises();
      const [victim, other] = [fleet.pods[0]!, fleet.pods[1]!];
      await Promise.all([fault.act(fleet, victim), fleet.work(other, 5)]);
      tookMs.push(`${String(Math.round(await fleet.untilEqual())).padStart(6)}  ${name}`);
      expect(fleet.nPromises()).toBeGreaterThan(before);
      // It goes on as if nothing had been.
      await fleet.work(victim, 3);
      await fleet.untilEqual();
      expect(fleet.status(other)).toMatchObject({ gaps: 0, restarts: 0, errors: 0 });
    },
  );
});

test('what a pod no longer tells anybody is missed and nothing else: its view is partial until it forgets everything', async () => {
  const fleet = await startKvFleet({ nPods: 1, stream: STREAM, pod: { bufferSteps: 20 } });
  const pod = fleet.pods[0]!;
  try {
    await fleet.work(pod, 30);
    await fleet.untilEqual();
    for (const fault of KV_FAULTS.filter(({ loses }) => loses === 'for good')) {
      await fault.act(fleet, pod);
      await fleet.untilTrue();
      expect(fleet.status(pod)).toMatchObject({ partial: true, trust: 'degraded' });
    }
    expect(pod.pod.resetPrefixCache()).toBe('done');
    await fleet.work(pod, 5);
    await fleet.untilEqual();
  } finally {
    await fleet.stop();
  }
});
