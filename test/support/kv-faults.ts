/** What happens to a pod's event stream in the field, each as one act on a fleet: it returns when the fault is over. */
import { setTimeout as delay } from 'node:timers/promises';
import type { FleetPod, KvFleet } from './kv-fleet.ts';

export type KvFault = {
  readonly name: string;
  act(fleet: KvFleet, pod: FleetPod): Promise<void>;
  /** What the pod no longer tells anybody: true is then all that can be asked for. */
  readonly loses?: 'for good';
};

const garbage = (nFrames: number): Buffer[] => Array.from({ length: nFrames }, (_, i) => Buffer.alloc(9 * i, 0xc1));

export const KV_FAULTS: readonly KvFault[] = [
  {
    name: 'batches dropped in the middle of the stream',
    async act(fleet, pod) {
      pod.pod.faults.dropLiveBatches(5);
      await fleet.work(pod, 12);
    },
  },
  {
    name: 'the tail dropped, then silence',
    async act(fleet, pod) {
      pod.pod.faults.dropLiveBatches(6);
      await fleet.work(pod, 6);
    },
  },
  {
    name: 'live batches overtaken by a replay',
    async act(fleet, pod) {
      pod.pod.faults.dropLiveBatches(2);
      await fleet.work(pod, 3);
      pod.live.stall();
      await fleet.work(pod, 8);
      await delay(50);
      pod.live.relay();
    },
  },
  {
    name: 'a replay overtaken by live batches',
    async act(fleet, pod) {
      pod.replay.stall();
      pod.pod.faults.dropLiveBatches(2);
      await fleet.work(pod, 15);
      pod.replay.relay();
    },
  },
  {
    name: 'both connections stalled',
    async act(fleet, pod) {
      pod.live.stall();
      pod.replay.stall();
      await fleet.work(pod, 10);
      pod.replay.relay();
      pod.live.relay();
    },
  },
  {
    name: 'the connection cut again and again',
    async act(fleet, pod) {
      for (let i = 0; i < 4; i++) {
        pod.live.cut();
        if (i % 2 === 1) pod.replay.cut();
        await fleet.work(pod, 4);
      }
    },
  },
  {
    name: 'a network that is gone for a while',
    async act(fleet, pod) {
      pod.live.refuse();
      pod.replay.refuse();
      await fleet.work(pod, 10);
      pod.replay.relay();
      pod.live.relay();
    },
  },
  {
    name: 'messages of the wrong form',
    async act(fleet, pod) {
      for (let i = 0; i < 5; i++) {
        pod.pod.faults.sendRaw(garbage(i + 1));
        await fleet.work(pod, 1);
      }
    },
  },
  {
    name: 'bytes that are not ZMTP',
    async act(fleet, pod) {
      pod.live.inject(Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'));
      pod.replay.inject(Buffer.alloc(64, 0xff));
      await fleet.work(pod, 5);
    },
  },
  {
    name: 'a batch that is none under the next number',
    async act(fleet, pod) {
      const seq = Buffer.alloc(8);
      seq.writeBigUInt64BE(BigInt(pod.pod.stats().nextSeq));
      pod.pod.faults.sendRaw([Buffer.alloc(0), seq, Buffer.from('not msgpack')]);
      await fleet.work(pod, 5);
    },
  },
  {
    name: 'a crash, and a restart from sequence 0',
    async act(fleet, pod) {
      await fleet.kill(pod);
      await fleet.revive(pod);
      await fleet.work(pod, 2);
    },
  },
  {
    name: 'a restart nobody sees that has passed the old sequence',
    async act(fleet, pod) {
      const { nextSeq } = pod.pod.stats();
      pod.live.refuse();
      pod.replay.refuse();
      await fleet.kill(pod);
      await fleet.revive(pod);
      while (pod.pod.stats().nextSeq <= nextSeq + 3) await fleet.work(pod, 5);
      pod.replay.relay();
      pod.live.relay();
    },
  },
  {
    name: 'a replay that loses its middle and its end',
    async act(fleet, pod) {
      let nLost = 0;
      pod.pod.faults.loseInReplays((seq) => (seq === -1 || seq % 3 === 1) && nLost++ < 8);
      pod.live.cut();
      await fleet.work(pod, 10);
    },
  },
  {
    name: 'a replay socket that does not answer for a while',
    async act(fleet, pod) {
      pod.pod.faults.ignoreReplays();
      pod.pod.faults.dropLiveBatches(1);
      await fleet.work(pod, 4);
      await delay(50);
      pod.pod.faults.answerReplays();
    },
  },
  {
    name: 'an engine that stands still',
    async act(fleet, pod) {
      pod.pod.faults.stall();
      const waiting = fleet.work(pod, 1);
      await delay(50);
      pod.pod.faults.resume();
      await waiting;
    },
  },
  {
    name: 'a gap longer than the replay buffer',
    loses: 'for good',
    async act(fleet, pod) {
      const { nextSeq } = pod.pod.stats();
      pod.live.refuse();
      while (pod.pod.stats().nextSeq < nextSeq + 2 * pod.pod.options.bufferSteps) await fleet.work(pod, 5);
      pod.live.relay();
    },
  },
];
