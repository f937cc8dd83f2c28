/** A tokenizer in a process of its own, so that its cost is not counted as ours: `tokens-server.ts`, then one order a line on stdin. */
import { createInterface } from 'node:readline';
import { startFakeTokenizer, type Behaviour, type FakeTokenizer } from '../support/fake-tokenizer.ts';

export type ServerOrder = {
  readonly behaviour: Behaviour;
  readonly delayMs: number;
  readonly vocabulary?: FakeTokenizer['vocabulary'];
};

const fake = await startFakeTokenizer();
process.stdout.write(`${fake.url}\n`);
createInterface(process.stdin)
  .on('line', (line) => {
    const { behaviour, delayMs, vocabulary = 'bytes' } = JSON.parse(line) as ServerOrder;
    fake.behaviour = behaviour;
    fake.delayMs = delayMs;
    fake.vocabulary = vocabulary;
    process.stdout.write(`${fake.calls.length}\n`);
  })
  .on('close', () => void fake.stop());
