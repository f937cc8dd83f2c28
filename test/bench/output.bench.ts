/**
 * How well the tokens of an answer are predicted: `node test/bench/output.bench.ts TRACE` (Mooncake format). Every request is
 * predicted when it comes, and learnt from when its answer would be over; beside it the mean of all before and the last one.
 */
import { readFileSync } from 'node:fs';
import { createOutputPredictor } from '../../src/load/output-predictor.ts';
import { createVirtualClock } from '../../src/replay/virtual-clock.ts';

/** An answer of n tokens is over so much later. */
const MS_PER_TOKEN = 25;

type Line = { readonly timestamp: number; readonly input_length: number; readonly output_length: number };
type Predict = (line: Line) => number | null;

function main(path: string): void {
  const lines = readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Line);
  const clock = createVirtualClock();
  const predictor = createOutputPredictor(clock);
  let [n, sum, last] = [0, 0, 0];
  const errors = new Map<string, { n: number; absolute: number; squared: number; signed: number }>();
  const predictions: Readonly<Record<string, Predict>> = {
    'by prompt length': ({ input_length: length }) => predictor.predict('m', length),
    'mean of all before': () => (n === 0 ? null : sum / n),
    'last one': () => (n === 0 ? null : last),
  };
  for (const line of lines) {
    clock.after(line.timestamp, () => {
      for (const [name, predict] of Object.entries(predictions)) {
        const predicted = predict(line);
        if (predicted === null) continue;
        const error = errors.get(name) ?? { n: 0, absolute: 0, squared: 0, signed: 0 };
        const off = predicted - line.output_length;
        errors.set(name, {
          n: error.n + 1,
          absolute: error.absolute + Math.abs(off),
          squared: error.squared + off * off,
          signed: error.signed + off,
        });
      }
      clock.after(line.output_length * MS_PER_TOKEN, () => {
        predictor.observe('m', line.input_length, line.output_length);
        [n, sum, last] = [n + 1, sum + line.output_length, line.output_length];
      });
    });
  }
  clock.advanceTo(Infinity);
  const mean = lines.reduce((total, line) => total + line.output_length, 0) / lines.length;
  say(`${lines.length} requests, mean answer ${mean.toFixed(0)} tokens`);
  say('| prediction | mean error | root of mean square | bias |');
  say('|---|---|---|---|');
  for (const [name, { n: count, absolute, squared, signed }] of errors) {
    const cells = [absolute / count, Math.sqrt(squared / count), signed / count].map((value) => value.toFixed(1));
    say(`| ${[name, ...cells].join(' | ')} |`);
  }
}

const say = (line: string): void => void process.stdout.write(`${line}\n`);

main(process.argv[2]!);
