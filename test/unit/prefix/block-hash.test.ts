import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import {
  canonicalExtraKeys,
  createBlockHasher,
  createHashSeed,
  requestExtraKeys,
  type BlockExtraKeys,
} from '../../../src/prefix/block-hash.ts';
import { createFastPieces } from '../../../src/prefix/hash-pieces-wasm.ts';
import { countHostileCollisions } from '../../support/hostile-blocks.ts';
import { createRandom, seededWords } from '../../support/kv-events.ts';

const hasher = createBlockHasher(createHashSeed(seededWords(1)));
const tokens = (n: number, seed = 1): Uint32Array => {
  const random = createRandom(seed);
  return Uint32Array.from({ length: n }, () => random(150_000));
};

describe('block keys', () => {
  test('there is one of two words per full block, a trailing part is dropped', () => {
    const root = hasher.root('m', null, 16);
    expect(hasher.blocks(tokens(15), root, 16)).toHaveLength(0);
    expect(hasher.blocks(tokens(16), root, 16)).toHaveLength(2);
    expect(hasher.blocks(tokens(50), root, 16)).toHaveLength(6);
  });

  test.each([1, 3, 4, 15, 16, 17, 32, 48, 100, 528])('blocks of %i tokens continue from any block', (size) => {
    const ids = tokens(5 * size);
    const root = hasher.root('m', 'lora', size);
    const extraKeys: BlockExtraKeys = [['salt'], null, [['image', -3]], null, ['a', 'b']];
    const whole = hasher.blocks(ids, root, size, extraKeys);
    for (let cut = 1; cut < 5; cut++) {
      const rest = new Uint32Array(2 * (5 - cut));
      const hi = whole[2 * cut - 2]!;
      const lo = whole[2 * cut - 1]!;
      hasher.continueBlocks(hi, lo, ids.subarray(cut * size), 5 - cut, size, extraKeys.slice(cut), rest);
      expect([...rest]).toEqual([...whole.subarray(2 * cut)]);
    }
  });

  test('whatever tells two prompts apart tells all their later keys apart', () => {
    const ids = tokens(64);
    const variants = {
      plain: hasher.blocks(ids, hasher.root('m', null, 16), 16),
      'other model': hasher.blocks(ids, hasher.root('n', null, 16), 16),
      adapter: hasher.blocks(ids, hasher.root('m', 'a', 16), 16),
      'adapter without a name': hasher.blocks(ids, hasher.root('m', '', 16), 16),
      'block size in the root': hasher.blocks(ids, hasher.root('m', null, 32), 16),
      salt: hasher.blocks(ids, hasher.root('m', null, 16), 16, [['s'], null, null, null]),
      'other salt': hasher.blocks(ids, hasher.root('m', null, 16), 16, [['t'], null, null, null]),
      image: hasher.blocks(ids, hasher.root('m', null, 16), 16, [[['s', 0]], null, null, null]),
      'image elsewhere': hasher.blocks(ids, hasher.root('m', null, 16), 16, [[['s', 1]], null, null, null]),
      'image before': hasher.blocks(ids, hasher.root('m', null, 16), 16, [[['s', -1]], null, null, null]),
      'first token': hasher.blocks(ids.with(0, ids[0]! + 1), hasher.root('m', null, 16), 16),
      'other seed': createBlockHasher(createHashSeed(seededWords(2))).blocks(ids, hasher.root('m', null, 16), 16),
    };
    for (const block of [0, 1, 2, 3]) {
      const keys = Object.values(variants).map((words) => `${words[2 * block]}:${words[2 * block + 1]}`);
      expect(new Set(keys).size).toBe(keys.length);
    }
  });

  test('a salt of megabytes is told from every other, and leaves nothing of its size behind', () => {
    const nCharacters = 8 << 20;
    const salts = ['a', 'b'].map((last) => 's'.repeat(nCharacters - 1) + last);
    const keyOf = (salt: string): string =>
      hasher.blocks(tokens(16), hasher.root('m', null, 16), 16, [[salt]]).join(' ');
    const before = process.memoryUsage().arrayBuffers;
    const first = keyOf(salts[0]!);
    // Its bytes for the digest, two each, may not be collected yet.
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(3 * nCharacters);
    const keys = [first, keyOf(salts[1]!), ...salts.map(keyOf), keyOf('s'.repeat(nCharacters))];
    expect(keys.slice(0, 2)).toEqual(keys.slice(2, 4));
    expect(new Set(keys).size).toBe(3);
    // Not even what UTF-8 can not tell apart is mixed up.
    expect(keyOf('\ud800'.repeat(1000))).not.toBe(keyOf('\ud801'.repeat(1000)));
  });

  test('lists of extra keys that read alike are told apart', () => {
    const lists: BlockExtraKeys = [
      ['ab'],
      ['a', 'b'],
      ['b', 'a'],
      [['ab', 0]],
      [['a', 0], 'b'],
      ['', 'ab'],
      ['1', 'a'],
    ];
    const root = hasher.root('m', null, 16);
    const keys = lists.map((list) => String(hasher.blocks(tokens(16), root, 16, [list])));
    expect(new Set(keys).size).toBe(lists.length);
  });

  test('the same seed gives the same keys in another process', () => {
    const again = createBlockHasher(createHashSeed(seededWords(1)));
    expect(again.root('m', 'a', 16)).toEqual(hasher.root('m', 'a', 16));
    const root = again.root('m', null, 16);
    // Written down once: a changed definition must be noticed, since replicas exchange keys.
    expect([...again.blocks(tokens(32), root, 16)]).toMatchInlineSnapshot(`
     [
       200635247,
       459797475,
       2236525770,
       3096004299,
     ]
    `);
  });

  test('a seed of another length is refused', () => {
    expect(() => createBlockHasher(new Uint32Array(4))).toThrow('a hash seed has 8 words, got 4');
  });

  test('memory that is too small is refused', () => {
    const out = new Uint32Array(2);
    expect(() => hasher.continueBlocks(0, 0, tokens(32), 2, 16, null, out)).toThrow(
      '2 blocks of 16 tokens do not fit: 32 tokens, 2 words',
    );
  });
});

describe('quality of the keys', () => {
  test('one changed bit of one token changes about half of the 64 bits', () => {
    const root = hasher.root('m', null, 16);
    const base = tokens(16);
    const [hi, lo] = hasher.blocks(base, root, 16);
    const flips = new Array<number>(64).fill(0);
    let n = 0;
    for (let at = 0; at < 16; at++) {
      for (let bit = 0; bit < 32; bit++, n++) {
        const [h, l] = hasher.blocks(base.with(at, base[at]! ^ (1 << bit)), root, 16);
        for (let k = 0; k < 32; k++) {
          flips[k]! += ((h! ^ hi!) >>> k) & 1;
          flips[32 + k]! += ((l! ^ lo!) >>> k) & 1;
        }
      }
    }
    // 512 tries per bit: 256 ± 11; six deviations are a defect.
    for (const count of flips) expect(Math.abs(count / n - 0.5)).toBeLessThan(0.14);
  });

  test('no two of a million blocks made to collide do so', () => {
    expect(countHostileCollisions(hasher, 1_000_000)).toBe(0);
  });
});

describe('WebAssembly', () => {
  const entry = fc.oneof(
    fc.constant(null),
    fc.array(fc.oneof(fc.string(), fc.tuple(fc.string(), fc.integer({ min: -100, max: 100 }))), { maxLength: 3 }),
  );
  const prompt = fc.record({
    seed: fc.uint32Array({ minLength: 8, maxLength: 8 }),
    size: fc.constantFrom(1, 4, 15, 16, 17, 32, 48, 64, 8192, 8208),
    tokenIds: fc.uint32Array({ maxLength: 400 }),
    // Real vocabularies have less than 2^18 tokens, and plain arithmetic takes a shorter way there.
    maxToken: fc.constantFrom(2 ** 18 - 1, 2 ** 18, 2 ** 32 - 1),
    isSaturated: fc.boolean(),
    repeats: fc.integer({ min: 1, max: 90 }),
    extraKeys: fc.option(fc.array(entry, { maxLength: 30 })),
  });

  test('gives the keys that plain arithmetic gives, whatever the tokens, sizes, lengths, extra keys and seeds', () => {
    fc.assert(
      fc.property(prompt, ({ seed, size, tokenIds, maxToken, isSaturated, repeats, extraKeys }) => {
        // Long ones too: blocks go through it some hundred at a time.
        const ids = new Uint32Array(tokenIds.length * repeats);
        for (let i = 0; i < ids.length; i++) {
          ids[i] = isSaturated ? maxToken : (tokenIds[i % tokenIds.length]! + i) % (maxToken + 1);
        }
        const fast = createBlockHasher(seed, 'wasm');
        const plain = createBlockHasher(seed);
        const root = plain.root('m', 'a', size);
        expect(fast.root('m', 'a', size)).toEqual(root);
        expect(fast.blocks(ids, root, size, extraKeys)).toEqual(plain.blocks(ids, root, size, extraKeys));
      }),
      { numRuns: 300 },
    );
  });

  test('can be had on this platform', () => {
    expect(createFastPieces(new Uint32Array(34))).not.toBeNull();
  });

  test.each([
    ['there is none', undefined],
    [
      'it cannot be compiled',
      {
        Module: class {
          constructor() {
            throw new SyntaxError('no vectors');
          }
        },
      },
    ],
  ])('is done without where %s', (_, replacement) => {
    const scope = globalThis as { WebAssembly?: unknown };
    const real = scope.WebAssembly;
    const ids = tokens(400);
    try {
      scope.WebAssembly = replacement;
      const without = createBlockHasher(createHashSeed(seededWords(1)), 'wasm');
      scope.WebAssembly = real;
      const root = without.root('m', null, 16);
      expect(without.blocks(ids, root, 16)).toEqual(hasher.blocks(ids, root, 16));
    } finally {
      scope.WebAssembly = real;
    }
  });
});

describe('canonical extra keys', () => {
  test.each<[string, BlockExtraKeys | null | undefined, string | null, BlockExtraKeys | null]>([
    ['not reported', undefined, null, null],
    ['none', null, null, null],
    ['none in any block', [null, null], null, null],
    ['a salt', [['salt'], null], null, [['salt'], null]],
    ['only the LoRA name', [['lora'], ['lora']], 'lora', null],
    ['LoRA name and salt', [['lora', 'salt'], ['lora']], 'lora', [['salt'], null]],
    [
      'LoRA name and image',
      [
        ['lora', ['img', 5]],
        ['lora', ['img', -11]],
      ],
      'lora',
      [[['img', 5]], [['img', -11]]],
    ],
    ['a salt that reads like the LoRA name', [['lora', 'lora'], ['lora']], 'lora', [['lora'], null]],
    ['a salt that reads like another LoRA name', [['lora'], null], null, [['lora'], null]],
  ])('%s', (_, reported, loraName, canonical) => {
    expect(canonicalExtraKeys(reported, loraName)).toEqual(canonical);
  });

  test('a request and the event of its blocks give the same keys', () => {
    // An image of 40 tokens from token 5 on, another of 8 from token 50 on, in blocks of 16.
    const features = [
      { identifier: 'cat', offset: 5, length: 40 },
      { identifier: 'dog', offset: 50, length: 8 },
    ];
    const event: BlockExtraKeys = [
      ['lora', ['cat', 5], 'salt'],
      ['lora', ['cat', -11]],
      ['lora', ['cat', -27]],
      ['lora', ['dog', 2]],
    ];
    expect(requestExtraKeys('salt', features, 16, 4)).toEqual(canonicalExtraKeys(event, 'lora'));
  });

  test.each([
    ['nothing', null, [], 3, null],
    ['no full block', 'salt', [], 0, null],
    ['an image behind the last full block', null, [{ identifier: 'cat', offset: 64, length: 9 }], 4, null],
    ['an image that ends with a block', null, [{ identifier: 'cat', offset: 0, length: 16 }], 2, [[['cat', 0]], null]],
    [
      // Qwen-Omni: both have the place of both.
      'a video with its sound',
      null,
      [
        { identifier: 'video', offset: 5, length: 40 },
        { identifier: 'sound', offset: 5, length: 40 },
      ],
      4,
      [
        [['video', 5]],
        [['video', -11]],
        [
          ['video', -27],
          ['sound', -27],
        ],
        null,
      ],
    ],
    [
      'an item inside of another, and one that begins where it ends',
      's',
      [
        { identifier: 'outer', offset: 4, length: 30 },
        { identifier: 'inner', offset: 20, length: 4 },
        { identifier: 'next', offset: 34, length: 20 },
      ],
      4,
      [
        [['outer', 4], 's'],
        [['outer', -12]],
        [
          ['outer', -28],
          ['next', 2],
        ],
        [['next', -14]],
      ],
    ],
    [
      'nothing of an item behind the end of the last one, as vLLM has it',
      null,
      [
        { identifier: 'outer', offset: 0, length: 60 },
        { identifier: 'inner', offset: 2, length: 4 },
      ],
      3,
      [[['outer', 0]], null, null],
    ],
  ] as const)('of a request with %s', (_, salt, features, nBlocks, want) => {
    expect(requestExtraKeys(salt, features, 16, nBlocks)).toEqual(want);
  });
});
