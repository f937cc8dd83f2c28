import { readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { parse } from 'yaml';
import {
  prioritiesByName,
  readInferenceObjective,
  type InferenceObjective,
} from '../../../src/kubernetes/inference-objectives.ts';
import { readInferencePool } from '../../../src/kubernetes/inference-pool.ts';
import { adaptersByPod, readModelAdapter } from '../../../src/kubernetes/model-adapters.ts';
import { compareVersions, metaOf } from '../../../src/kubernetes/objects.ts';
import { createSchemas, type Manifest } from '../../support/kube-schemas.ts';
import { anAdapter, aPool } from '../../support/kubernetes.ts';

describe('an InferencePool', () => {
  test('stands for a selector and ports', () => {
    const pool = readInferencePool(aPool({ matchLabels: { b: '2', a: '1' }, ports: [8000, 8001] }));
    expect(pool).toEqual({ kind: 'pool', name: 'pool', labelSelector: 'a=1,b=2', targetPorts: [8000, 8001] });
  });

  test('that says the same in another order is the same', () => {
    expect(readInferencePool(aPool({ matchLabels: { a: '1', b: '2' } }))).toEqual(
      readInferencePool(aPool({ matchLabels: { b: '2', a: '1' } })),
    );
  });

  const labels = 'spec.selector.matchLabels must have at least one label';
  const ports = 'spec.targetPorts must be different ports from 1 to 65535';
  test.each<[string, object]>([
    [labels, { spec: {} }],
    [labels, { spec: { selector: { matchLabels: {} }, targetPorts: [{ number: 1 }] } }],
    [ports, { spec: { selector: { matchLabels: { a: '1' } } } }],
    [ports, { spec: { selector: { matchLabels: { a: '1' } }, targetPorts: [{ number: 0 }] } }],
    [ports, { spec: { selector: { matchLabels: { a: '1' } }, targetPorts: [{ number: 80 }, { number: 80 }] } }],
  ])('that cannot be followed says why: %s', (reason, object) => {
    expect(readInferencePool(object)).toMatchObject({ kind: 'unusable', reason });
  });
});

describe('InferenceObjectives', () => {
  const page = readFileSync(new URL('../../../docs/operations.md', import.meta.url), 'utf8');
  const [example] = [...page.matchAll(/```yaml\n(apiVersion: inference\.networking\.x-k8s\.io[^]*?)```/g)].map(
    ([, text]) => parse(text!) as Manifest,
  );

  test('the one of the documentation is as the CRD wants it, and is understood', () => {
    expect(createSchemas()(example!)).toEqual([]);
    expect(readInferenceObjective(example)).toEqual({ name: 'nightly', priority: -10, pool: 'vllm-pool' });
  });

  test.each<[string, object]>([
    ['no priority', { metadata: { name: 'a' }, spec: { poolRef: { name: 'p' } } }],
    ['a priority that is no number', { metadata: { name: 'a' }, spec: { priority: '-1', poolRef: { name: 'p' } } }],
  ])('%s is 0', (_what, object) => {
    expect(readInferenceObjective(object)).toEqual({ name: 'a', priority: 0, pool: 'p' });
  });

  test('a name that both groups have has the lower priority; without a name, or of another pool, none counts', () => {
    const of = (name: string, priority: number, pool = 'p'): InferenceObjective => ({ name, priority, pool });
    const all = [of('a', 5), of('a', -5), of('a', 3), of('', -1), of('b', -1, 'q')];
    expect([...prioritiesByName(all, 'p')]).toEqual([['a', -5]]);
    expect([...prioritiesByName(all, null)]).toEqual([
      ['a', -5],
      ['b', -1],
    ]);
  });
});

describe('ModelAdapters', () => {
  test('name the pods that loaded them; one that is being deleted names none', () => {
    const adapters = [
      readModelAdapter(anAdapter('sql', ['vllm-1', 'vllm-0'])),
      readModelAdapter(anAdapter('law', ['vllm-1', 'vllm-1'])),
      { ...readModelAdapter(anAdapter('old', ['vllm-0'])), isTerminating: true },
    ];
    expect([...adaptersByPod(adapters)].sort()).toEqual([
      ['vllm-0', ['sql']],
      ['vllm-1', ['law', 'sql']],
    ]);
  });

  test.each([[null], [{ status: { instances: 'vllm-0' } }], [{ status: { instances: [1, '', null] } }]])(
    'of any shape are read: %j',
    (object) => {
      expect(readModelAdapter(object)).toEqual({ name: '', isTerminating: false, instances: [] });
    },
  );
});

describe('resource versions', () => {
  test.each<[string, string, number | null]>([
    ['9', '10', -1],
    ['10', '9', 1],
    ['18446744073709551614', '18446744073709551615', -1],
    ['7', '7', 0],
    ['a7', '8', null],
    ['07', '8', null],
  ])('%s against %s', (a, b, wanted) => {
    const order = compareVersions(a, b);
    expect(order === null ? null : Math.sign(order)).toBe(wanted);
  });

  test('an object without name, uid or version cannot be followed', () => {
    const metadata = { name: 'a', uid: 'u', resourceVersion: '1' };
    expect(metaOf({ metadata })).toEqual(metadata);
    for (const key of Object.keys(metadata)) expect(metaOf({ metadata: { ...metadata, [key]: '' } })).toBeNull();
  });
});
