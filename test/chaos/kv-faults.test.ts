/**
 * Faults of kv-faults.ts in random order, on pods whose caches overflow all the time. Every round measures how long after the
 * end of the fault the index equals every pod again. `make test-kv-sync-chaos` does many rounds and holds each kind of fault
 * to two seconds, by the best of its rounds.
 */
import { expect, test } from '@jest/globals';
import { createRandom } from '../../src/replay/random.ts';
import { KV_FAULTS } from '../support/kv-faults.ts';
import { startKvFleet } from '../support/kv-fleet.ts';

const N_ROUNDS = Number(process.env['WARMPATH_KV_CHAOS_ROUNDS'] ?? 8);
const SEED = Number(process.env['WARMPATH_KV_CHAOS_SEED'] ?? Date.now() % 1_000_000);
const FAULTS = KV_FAULTS.filter(({ loses }) => loses === undefined);
const IS_LONG = N_ROUNDS >= 3 * FAULTS.length;
const RECOVERY_MS = 2000;

test(
  'the index equals every pod after every fault, and nothing was promised that was not announced',
  async () => {
    const random = createRandom(SEED);
    const tookMs = new Map<string, number[]>();
    // The settings are those of `serve`.
    const fleet = await startKvFleet({ nPods: 3, random, limitMs: 60_000 });
    try {
      for (const pod of fleet.pods) await fleet.work(pod, 20);
      await fleet.untilEqual();
      for (let round = 0; round < N_ROUNDS; round++) {
        const fault = IS_LONG ? FAULTS[round % FAULTS.length]! : FAULTS[Math.floor(random() * FAULTS.length)]!;
        const first = Math.floor(random() * fleet.pods.length);
        const [victim, other, third] = [0, 1, 2].map((i) => fleet.pods[(first + i) % fleet.pods.length]!);
        await Promise.all([
          fault.act(fleet, victim!),
          fleet.work(other!, 1 + Math.floor(random() * 10)),
          // Two at once, now and then.
          random() < 0.3 ? fault.act(fleet, third!) : fleet.work(third!, 3),
        ]);
        const ms = await fleet.untilEqual();
        tookMs.set(fault.name, [...(tookMs.get(fault.name) ?? []), ms]);
      }
    } catch (error) {
      throw new Error(`seed ${SEED}: ${String(error)}`, { cause: error });
    } finally {
      await fleet.stop();
    }
    expect(fleet.nPromises()).toBeGreaterThan(0);
    const lines = [...tookMs].map(([name, ms]) => {
      const best = Math.round(Math.min(...ms));
      return `${String(best).padStart(6)} ${String(Math.round(Math.max(...ms))).padStart(6)} ${String(ms.length).padStart(4)}  ${name}`;
    });
    process.stdout.write(`\nseed ${SEED}; best and worst ms to equal, rounds, fault\n${lines.join('\n')}\n`);
    if (!IS_LONG) return;
    const late = [...tookMs].filter(([, ms]) => Math.min(...ms) > RECOVERY_MS).map(([name]) => name);
    expect(late).toEqual([]);
  },
  N_ROUNDS * 10_000 + 60_000,
);
