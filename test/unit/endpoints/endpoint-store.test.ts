import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createEndpointStore, type Change, type EndpointStore } from '../../../src/endpoints/endpoint-store.ts';
import {
  endpointKey,
  MAX_ENDPOINT_SLOTS,
  ranksApart,
  type Endpoint,
  type EndpointSlot,
  type EndpointSpec,
} from '../../../src/endpoints/endpoint.ts';
import { aSpec } from '../../support/endpoints.ts';

const [A, B, C] = ['10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80'] as const;

function addresses(endpoints: readonly Endpoint[]): readonly string[] {
  return endpoints.map(({ address }) => address);
}

function at(store: EndpointStore, address: string): Endpoint {
  const found = store.all().find((endpoint) => endpoint.address === address);
  if (found === undefined) throw new Error(`no endpoint ${address}`);
  return found;
}

describe('adapters that an engine names itself', () => {
  test('count beside those of the list, outlive another list, and go when they are named no more', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A, adapters: ['sql'] }), aSpec({ address: B })]);
    const { id, slot } = at(store, A);
    store.learnAdapters(id, ['chat', 'sql']);
    expect(at(store, A)).toMatchObject({ id, slot, adapters: ['sql', 'chat'] });
    expect(addresses(store.candidates('chat')!.ready)).toEqual([A]);
    store.replace([aSpec({ address: B }), aSpec({ address: A, adapters: ['sql'], labels: { zone: 'a' } })]);
    expect(at(store, A).adapters).toEqual(['sql', 'chat']);
    store.learnAdapters(id, []);
    expect(at(store, A).adapters).toEqual(['sql']);
    expect(store.candidates('chat')).toBeNull();
  });

  test('said again they change nothing, and another process starts without them', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A, incarnation: '1' })]);
    const { id } = at(store, A);
    store.learnAdapters(id, ['chat']);
    const heard: Change[] = [];
    store.onChange((change) => heard.push(change));
    store.learnAdapters(id, ['chat']);
    expect(heard).toEqual([]);
    store.replace([aSpec({ address: A, incarnation: '2' })]);
    expect(at(store, A).adapters).toEqual([]);
    // An answer that was under way when the process went.
    store.learnAdapters(id, ['chat']);
    expect(at(store, A).adapters).toEqual([]);
  });
});

describe('data-parallel ranks behind one address', () => {
  const kvEvents = [0, 1, 2].map((rank) => ({ endpoint: `tcp://10.0.0.1:${5557 + rank}`, replayEndpoint: null }));
  const ranks = (more: Partial<EndpointSpec> = {}): readonly EndpointSpec[] =>
    ranksApart([aSpec({ address: A, name: 'pod', dataParallelSize: 3, kvEvents, ...more }), aSpec({ address: B })]);

  test('are endpoints of their own, each with its own publisher; the others stay as they are', () => {
    expect(ranks()).toEqual([
      aSpec({ address: A, name: 'pod/0', rank: 0, kvEvents: [kvEvents[0]!] }),
      aSpec({ address: A, name: 'pod/1', rank: 1, kvEvents: [kvEvents[1]!] }),
      aSpec({ address: A, name: 'pod/2', rank: 2, kvEvents: [kvEvents[2]!] }),
      aSpec({ address: B }),
    ]);
    expect(ranks({ kvEvents: [] }).map((one) => [one.rank, one.kvEvents.length])).toEqual([
      [0, 0],
      [1, 0],
      [2, 0],
      [null, 0],
    ]);
  });

  test('have a slot and an id each, keep them, and give them back when there are fewer', () => {
    const store = createEndpointStore();
    expect(store.replace(ranks()).problems).toEqual([]);
    const before = store.all();
    expect(before.map(endpointKey)).toEqual([`${A}/0`, `${A}/1`, `${A}/2`, B]);
    expect(new Set(before.map(({ slot }) => slot)).size).toBe(4);
    expect(new Set(before.map(({ id }) => id)).size).toBe(4);
    expect(store.candidates('demo')!.ready).toHaveLength(4);
    expect(store.replace(ranks())).toMatchObject({ added: [], removed: [], changed: [] });
    const { removed, added, changed } = store.replace(ranks({ dataParallelSize: 2 }));
    expect([removed.map(endpointKey), added, changed]).toEqual([[`${A}/2`], [], []]);
    expect(store.all()).toEqual(before.filter(({ rank }) => rank !== 2));
  });

  test('another process behind the address is another one behind every rank', () => {
    const store = createEndpointStore();
    store.replace(ranks({ incarnation: '1' }));
    const { changed } = store.replace(ranks({ incarnation: '2' }));
    expect(changed.map(({ after, what }) => [endpointKey(after), what])).toEqual(
      [0, 1, 2].map((rank) => [`${A}/${rank}`, 'restarted']),
    );
  });

  test('an address is one endpoint or several ranks, never both, and no rank is there twice', () => {
    const whole = aSpec({ address: A, name: 'whole' });
    const rank0 = aSpec({ address: A, name: 'rank', rank: 0 });
    for (const pair of [
      [whole, rank0],
      [rank0, whole],
      [rank0, { ...rank0, name: 'again' }],
    ]) {
      const store = createEndpointStore();
      expect(store.replace(pair).problems).toEqual([
        `endpoint ${pair[1]!.name} must have an address of its own, got ${A} of ${pair[0]!.name}`,
      ]);
      expect(store.all()).toHaveLength(1);
    }
  });
});

describe('replace', () => {
  test('the same list again changes nothing, tells nobody and keeps the objects', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A, labels: { zone: 'a' } }), aSpec({ address: B })]);
    const before = store.all();
    const heard: Change[] = [];
    store.onChange((change) => heard.push(change));
    const change = store.replace([aSpec({ address: A, labels: { zone: 'a' } }), aSpec({ address: B })]);
    expect(change).toEqual({ added: [], removed: [], changed: [], problems: [] });
    expect(heard).toEqual([]);
    store.all().forEach((endpoint, index) => expect(endpoint).toBe(before[index]));
  });

  test('what came, what went and what stayed is told, and whoever stays keeps slot and id', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A }), aSpec({ address: B })]);
    const { id, slot } = at(store, B);
    const change = store.replace([aSpec({ address: C }), aSpec({ address: B })]);
    expect(addresses(change.added)).toEqual([C]);
    expect(addresses(change.removed)).toEqual([A]);
    expect(change.changed).toEqual([]);
    expect(at(store, B)).toMatchObject({ id, slot });
    expect(addresses(store.all())).toEqual([C, B]);
  });

  test('another incarnation keeps the slot, gets another id and is told as restarted', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A, incarnation: 'uid-1' })]);
    const before = at(store, A);
    const { changed, added, removed } = store.replace([aSpec({ address: A, incarnation: 'uid-2' })]);
    expect([added, removed]).toEqual([[], []]);
    expect(changed).toEqual([{ before, after: at(store, A), what: 'restarted' }]);
    expect(at(store, A).slot).toBe(before.slot);
    expect(at(store, A).id).not.toBe(before.id);
  });

  test('another canonical model is another process too', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A, models: ['one', 'alias'] })]);
    expect(store.replace([aSpec({ address: A, models: ['two', 'alias'] })]).changed[0]?.what).toBe('restarted');
  });

  test.each<[string, Partial<EndpointSpec>]>([
    ['name', { name: 'other' }],
    ['aliases', { models: ['demo', 'alias'] }],
    ['adapters', { adapters: ['lora'] }],
    ['labels', { labels: { zone: 'b' } }],
    ['readiness', { ready: false }],
    ['publishers', { kvEvents: [{ endpoint: 'tcp://10.0.0.1:1', replayEndpoint: null }] }],
    ['replay', { kvEvents: [{ endpoint: 'tcp://10.0.0.1:5557', replayEndpoint: 'tcp://10.0.0.1:2' }] }],
  ])('other %s are told as described anew, with id and slot kept', (_what, difference) => {
    const store = createEndpointStore();
    const kvEvents = [{ endpoint: 'tcp://10.0.0.1:5557', replayEndpoint: null }];
    store.replace([aSpec({ address: A, kvEvents })]);
    const before = at(store, A);
    const { changed } = store.replace([aSpec({ address: A, kvEvents, ...difference })]);
    expect(changed).toEqual([{ before, after: { ...before, ...difference }, what: 'described anew' }]);
  });

  test('an address given twice is used once and told', () => {
    const store = createEndpointStore();
    const change = store.replace([aSpec({ address: A, name: 'first' }), aSpec({ address: A, name: 'second' })]);
    expect(store.all().map(({ name }) => name)).toEqual(['first']);
    expect(change.problems).toEqual([`endpoint second must have an address of its own, got ${A} of first`]);
    expect(store.leftOut()).toEqual([{ name: 'second', reason: `its address ${A} is that of first` }]);
    store.replace([aSpec({ address: A, name: 'first' })]);
    expect(store.leftOut()).toEqual([]);
  });
});

describe('slots', () => {
  test('a slot is not used again before its blocks are cleared', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A })]);
    const { slot } = at(store, A);
    store.replace([aSpec({ address: B })]);
    expect(at(store, B).slot).not.toBe(slot);
    store.freed(slot);
    store.replace([aSpec({ address: B }), aSpec({ address: C })]);
    expect(at(store, C).slot).toBe(slot);
  });

  test('an address that comes back before its slot is cleared gets another slot and id', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A })]);
    const before = at(store, A);
    store.replace([]);
    store.replace([aSpec({ address: A })]);
    expect(at(store, A).slot).not.toBe(before.slot);
    expect(at(store, A).id).not.toBe(before.id);
  });

  test('freeing a slot that is in use is a bug and says so', () => {
    const store = createEndpointStore();
    store.replace([aSpec({ address: A })]);
    expect(() => store.freed(at(store, A).slot)).toThrow('slot 0 freed while an endpoint has it');
  });

  const many = (nEndpoints: number): EndpointSpec[] =>
    Array.from({ length: nEndpoints }, (_, i) => aSpec({ address: `10.1.${i >> 8}.${i & 255}:80` }));

  test('more endpoints than slots: the first ones are used, the rest is told', () => {
    const store = createEndpointStore();
    const change = store.replace(many(MAX_ENDPOINT_SLOTS + 3));
    expect(store.all()).toHaveLength(MAX_ENDPOINT_SLOTS);
    expect(new Set(store.all().map(({ slot }) => slot)).size).toBe(MAX_ENDPOINT_SLOTS);
    expect(change.problems).toEqual([`at most 1024 endpoints fit, left out 3 of ${MAX_ENDPOINT_SLOTS + 3}`]);
    const last = many(MAX_ENDPOINT_SLOTS + 3).slice(-3);
    expect(store.leftOut()).toEqual(last.map(({ name }) => ({ name, reason: 'at most 1024 endpoints fit' })));
  });

  test('an endpoint that found no slot is taken in when one is freed, and listeners hear of it', () => {
    const store = createEndpointStore();
    const full = many(MAX_ENDPOINT_SLOTS);
    store.replace(full);
    const { slot } = at(store, full[0]!.address);
    store.replace([...full.slice(1), aSpec({ address: A })]);
    expect(addresses(store.all())).not.toContain(A);
    const heard: Change[] = [];
    store.onChange((change) => heard.push(change));
    store.freed(slot);
    expect(at(store, A).slot).toBe(slot);
    expect(heard.map(({ added }) => addresses(added))).toEqual([[A]]);
    expect(store.leftOut()).toEqual([]);
  });

  test('a listener that frees slots at once does not mix up the order in which others hear', () => {
    const store = createEndpointStore();
    const full = many(MAX_ENDPOINT_SLOTS);
    store.replace(full);
    const heard: string[] = [];
    store.onChange(({ removed }) => removed.forEach(({ slot }) => store.freed(slot)));
    store.onChange(({ added, removed }) => heard.push(`+${added.length} -${removed.length}`));
    store.replace([...full.slice(1), aSpec({ address: A })]);
    expect(heard).toEqual(['+0 -1', '+1 -0']);
    expect(addresses(store.all())).toContain(A);
  });
});

describe('candidates', () => {
  const store = createEndpointStore();
  store.replace([
    aSpec({ address: A, models: ['llama', 'default'], adapters: ['sql'] }),
    aSpec({ address: B, models: ['llama', 'default'], ready: false }),
    aSpec({ address: C, models: ['qwen'], adapters: ['sql-2', 'sql-2'] }),
    aSpec({ address: '10.0.0.4:8000', models: ['asleep'], ready: false }),
  ]);
  const found = (model: string) => {
    const candidates = store.candidates(model);
    return candidates && { ...candidates, ready: addresses(candidates.ready) };
  };

  test('a model, its alias and an adapter lead to those that serve them, and to nobody else', () => {
    expect(found('llama')).toEqual({ ready: [A], model: 'llama', adapter: null });
    expect(found('default')).toEqual({ ready: [A], model: 'llama', adapter: null });
    expect(found('qwen')).toEqual({ ready: [C], model: 'qwen', adapter: null });
    expect(found('sql')).toEqual({ ready: [A], model: 'llama', adapter: 'sql' });
    expect(found('sql-2')).toEqual({ ready: [C], model: 'qwen', adapter: 'sql-2' });
  });

  test.each(['', 'nobody', '__proto__', 'constructor', 'Llama'])('%j is unknown', (model) => {
    expect(found(model)).toBeNull();
  });

  test('only ready ones are ready, and models are named once, by their canonical name', () => {
    expect(addresses(store.ready())).toEqual([A, C]);
    expect(found('asleep')).toEqual({ ready: [], model: 'asleep', adapter: null });
    expect(store.modelNames()).toEqual(['asleep', 'llama', 'qwen']);
  });

  test('the answer is prepared: asking again gives the same object', () => {
    expect(store.candidates('llama')).toBe(store.candidates('llama'));
  });

  test('a name that two models claim is told, and an adapter named like a model loses', () => {
    const confused = createEndpointStore();
    const { problems } = confused.replace([
      aSpec({ address: A, models: ['a', 'b'] }),
      aSpec({ address: B, models: ['b'], adapters: ['a'] }),
    ]);
    expect(problems).toEqual([
      'model b should belong to one model, got a, b',
      'adapter a must not have the name of a model, requests for it go to the model',
    ]);
    expect(confused.candidates('b')).toMatchObject({ model: 'b', adapter: null });
    expect(addresses(confused.candidates('b')!.ready)).toEqual([A, B]);
    expect(addresses(confused.candidates('a')!.ready)).toEqual([A]);
  });
});

test('whoever unsubscribes hears no more', () => {
  const store = createEndpointStore();
  const heard: Change[] = [];
  const unsubscribe = store.onChange((change) => heard.push(change));
  store.replace([aSpec({ address: A })]);
  unsubscribe();
  store.replace([]);
  expect(heard).toHaveLength(1);
});

test('random histories: a slot names one endpoint from its birth until it is freed, and the store is what the last list says', () => {
  const spec = fc.record({
    address: fc.constantFrom(A, B, C, '10.0.0.4:80', '10.0.0.5:80'),
    incarnation: fc.constantFrom('', '1'),
    ready: fc.boolean(),
  });
  const step = fc.oneof(
    { weight: 3, arbitrary: fc.array(spec, { maxLength: 5 }).map((specs) => ({ replace: specs })) },
    { weight: 1, arbitrary: fc.nat(5).map((which) => ({ free: which })) },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const store = createEndpointStore();
      const unfreed: EndpointSlot[] = [];
      for (const one of steps) {
        if ('free' in one) {
          const [slot] = unfreed.splice(one.free % Math.max(1, unfreed.length), 1);
          if (slot !== undefined) store.freed(slot);
          continue;
        }
        const before = new Map(store.all().map((endpoint) => [endpoint.address, endpoint]));
        const { removed } = store.replace(one.replace.map(aSpec));
        unfreed.push(...removed.map(({ slot }) => slot));
        const wanted = new Map<string, object>(one.replace.map((given) => [given.address, given] as const).reverse());
        expect(new Set(addresses(store.all()))).toEqual(new Set(wanted.keys()));
        for (const endpoint of store.all()) {
          expect(endpoint).toMatchObject(wanted.get(endpoint.address)!);
          const earlier = before.get(endpoint.address);
          if (earlier) expect(endpoint.slot).toBe(earlier.slot);
          if (earlier) expect(endpoint.id === earlier.id).toBe(endpoint.incarnation === earlier.incarnation);
        }
        const inUse = [...store.all().map(({ slot }) => slot), ...unfreed];
        expect(new Set(inUse).size).toBe(inUse.length);
        expect(store.ready()).toEqual(store.all().filter(({ ready }) => ready));
      }
    }),
    { numRuns: 300 },
  );
});
