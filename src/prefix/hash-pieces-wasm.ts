/**
 * The arithmetic of hash-pieces.ts as WebAssembly, with the same results in a third of the time (`make bench-kv`): sixteen
 * tokens are multiplied four at a time. Tested and benched, and not in use: ARCHITECTURE.md, "Block keys are computed in
 * plain TypeScript". The module is assembled here, from the instructions below; nothing else has to be built.
 * Bytes and numbers follow the WebAssembly 2.0 specification, chapter 5 (binary format).
 */
import { PIECE, type HashPieces } from './hash-pieces.ts';

type WasmExports = {
  readonly memory: { readonly buffer: ArrayBuffer };
  readonly hash: (nBlocks: number, nPieces: number, hi: number, lo: number) => void;
};
/** What is used of the global, which some platforms do not have. */
type WebAssemblyApi = {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object) => { readonly exports: unknown };
};

// The memory: keys, then keys of blocks, then tokens. Small enough to stay in the first-level cache.
const OUT_AT = 256;
const MAX_BLOCKS = 512;
const TOKENS_AT = 8192;
/** Larger blocks do not fit. */
export const MAX_FAST_BLOCK_TOKENS = 8192;
const MEMORY_PAGES = 1;

/** @param keys 16 words of the first sum, then 16 of the second @returns null where WebAssembly or its vectors are missing */
export function createFastPieces(keys: Uint32Array): HashPieces | null {
  const exports = instantiate();
  if (exports === null) return null;
  const { memory, hash } = exports;
  const words = new Uint32Array(memory.buffer);
  words.set(keys.subarray(0, 2 * PIECE));
  const tokens = words.subarray(TOKENS_AT / 4);
  return (tokenIds, start, nBlocks, nPieces, state, out, outAt) => {
    const blockTokens = nPieces * PIECE;
    const nAtOnce = Math.min(MAX_BLOCKS, Math.floor(MAX_FAST_BLOCK_TOKENS / blockTokens));
    for (let done = 0; done < nBlocks;) {
      const n = Math.min(nAtOnce, nBlocks - done);
      const from = start + done * blockTokens;
      tokens.set(tokenIds.subarray(from, from + n * blockTokens));
      hash(n, nPieces, state[0]!, state[1]!);
      const at = outAt + 2 * done;
      for (let i = 0; i < 2 * n; i++) out[at + i] = words[OUT_AT / 4 + i]!;
      state[0] = out[at + 2 * n - 2]!;
      state[1] = out[at + 2 * n - 1]!;
      done += n;
    }
  };
}

function instantiate(): WasmExports | null {
  const api = (globalThis as { WebAssembly?: WebAssemblyApi }).WebAssembly;
  if (api === undefined) return null;
  try {
    return new api.Instance(new api.Module(assembleModule())).exports as WasmExports;
  } catch {
    // No vectors, or no memory that may be executed: the plain arithmetic does it.
    return null;
  }
}

// ---- the module

const I32 = 0x7f;
const I64 = 0x7e;
const V128 = 0x7b;
const FUNCTION = 0x60;
const NO_RESULT = 0x40;

/** One function `hash(nBlocks, nPieces, hi, lo)` and one memory. */
export function assembleModule(): Uint8Array {
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, list([[FUNCTION, ...list([[I32], [I32], [I32], [I32]]), ...list([])]])),
    ...section(3, list([[0]])),
    ...section(5, list([[0x01, MEMORY_PAGES, MEMORY_PAGES]])),
    ...section(
      7,
      list([
        [...text('memory'), 0x02, 0],
        [...text('hash'), 0x00, 0],
      ]),
    ),
    ...section(10, list([sized(hashFunction())])),
  ]);
}

// Parameters and variables of the function.
const N_BLOCKS = 0;
const N_PIECES = 1;
const H = 2;
const L = 3;
const TOKEN = 4;
const OUT = 5;
const PIECES_LEFT = 6;
const SUM = 7;
const SUM_VECTOR = 8;
/** Four vectors of tokens, then eight of keys. */
const TOKENS = 9;
const KEYS = 13;
const LANES = 4;
const VECTORS = PIECE / LANES;

function hashFunction(): number[] {
  const variables = [
    [3, I32],
    [1, I64],
    [1 + 3 * VECTORS, V128],
  ];
  const body = [...constant(TOKENS_AT), ...set(TOKEN), ...constant(OUT_AT), ...set(OUT)];
  for (let i = 0; i < 2 * VECTORS; i++) body.push(...constant(0), ...load(16 * i), ...set(KEYS + i));
  const everyPiece: number[] = [];
  for (let i = 0; i < VECTORS; i++) everyPiece.push(...get(TOKEN), ...load(16 * i), ...set(TOKENS + i));
  everyPiece.push(
    ...[...get(TOKEN), ...constant(4 * PIECE), ...ADD, ...set(TOKEN)],
    ...absorbSum(KEYS, 0x2c1b3c6d, 0x85ebca6b, 11, 19),
    ...absorbSum(KEYS + VECTORS, 0x297a2d39, 0xc2b2ae35, 13, 17),
  );
  const everyBlock = [
    ...[...get(N_PIECES), ...set(PIECES_LEFT)],
    ...repeat(PIECES_LEFT, everyPiece),
    ...[...get(OUT), ...get(H), ...store(0), ...get(OUT), ...get(L), ...store(4)],
    ...[...get(OUT), ...constant(8), ...ADD, ...set(OUT)],
  ];
  body.push(...repeat(N_BLOCKS, everyBlock));
  return [...list(variables), ...body, END];
}

/** Σ token · key over the piece, both words xored into the state, and one round. */
function absorbSum(keys: number, byL: number, byH: number, turnH: number, turnL: number): number[] {
  const code: number[] = [];
  for (let i = 0; i < VECTORS; i++) {
    for (const multiply of [MULTIPLY_LOW, MULTIPLY_HIGH]) {
      code.push(...get(TOKENS + i), ...get(keys + i), ...multiply);
      if (i > 0 || multiply === MULTIPLY_HIGH) code.push(...ADD_VECTORS);
    }
  }
  const mixed = (word: number, shift: number, factor: number): number[] => [
    ...[...get(word), ...get(word), ...constant(shift), ...SHIFT_RIGHT, ...XOR],
    ...[...constant(factor), ...MULTIPLY, ...set(word)],
  ];
  const turned = (word: number, by: number): number[] => [...get(word), ...constant(by), ...ROTATE_LEFT];
  return [
    ...code,
    ...[...set(SUM_VECTOR), ...get(SUM_VECTOR), ...lane(0), ...get(SUM_VECTOR), ...lane(1), ...ADD_LONG, ...set(SUM)],
    ...[...get(L), ...get(SUM), ...LOW_WORD, ...XOR, ...set(L)],
    ...[...get(H), ...get(SUM), ...HIGH_WORD, ...XOR, ...set(H)],
    ...mixed(L, 15, byL),
    ...mixed(H, 16, byH),
    ...[...get(L), ...turned(H, turnH), ...ADD, ...set(L)],
    ...[...get(H), ...turned(L, turnL), ...XOR, ...set(H)],
  ];
}

// ---- instructions

const END = 0x0b;
const ADD = [0x6a];
const MULTIPLY = [0x6c];
const XOR = [0x73];
const SHIFT_RIGHT = [0x76];
const ROTATE_LEFT = [0x77];
const ADD_LONG = [0x7c];
const LOW_WORD = [0xa7];
/** By 32 bits to the right, then the low word. */
const HIGH_WORD = [0x42, 32, 0x88, ...LOW_WORD];
const ADD_VECTORS = [0xfd, ...unsigned(0xce)];
/** Products of the lower, the upper two of four unsigned lanes. */
const MULTIPLY_LOW = [0xfd, ...unsigned(0xde)];
const MULTIPLY_HIGH = [0xfd, ...unsigned(0xdf)];

function get(variable: number): number[] {
  return [0x20, variable];
}

function set(variable: number): number[] {
  return [0x21, variable];
}

function constant(word: number): number[] {
  return [0x41, ...signed(word | 0)];
}

/** A vector, from the address on the stack plus `offset`. */
function load(offset: number): number[] {
  return [0xfd, 0x00, 4, ...unsigned(offset)];
}

function store(offset: number): number[] {
  return [0x36, 2, offset];
}

function lane(index: number): number[] {
  return [0xfd, 0x1d, index];
}

/** Counts a variable down to 0; it is at least 1 before. */
function repeat(counter: number, body: readonly number[]): number[] {
  const countDown = [...get(counter), ...constant(-1), ...ADD, 0x22, counter];
  return [0x03, NO_RESULT, ...body, ...countDown, 0x0d, 0, END];
}

// ---- binary format

function section(id: number, content: readonly number[]): number[] {
  return [id, ...sized(content)];
}

function sized(content: readonly number[]): number[] {
  return [...unsigned(content.length), ...content];
}

function list(items: readonly (readonly number[])[]): number[] {
  return [...unsigned(items.length), ...items.flat()];
}

function text(ascii: string): number[] {
  return sized(Array.from(ascii, (letter) => letter.charCodeAt(0)));
}

/** LEB128. */
function unsigned(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest > 0x7f; rest >>>= 7) bytes.push((rest & 0x7f) | 0x80);
  return [...bytes, rest];
}

function signed(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest < -64 || rest > 63; rest >>= 7) bytes.push((rest & 0x7f) | 0x80);
  return [...bytes, rest & 0x7f];
}
