/**
 * Which endpoint holds which blocks of which prompt: one writer, any number of lock-free readers, in shared memory.
 * Knows slots, owners and keys only; what an event, a pod or a model is, it never sees. An owner is one engine behind
 * a slot (a slot has several where data-parallel ranks share an address), and a match is one owner's: blocks of two
 * engines are never added up. How the memory is laid out is run-layout.ts.
 */
import type { PrefixIndexMemory, PrefixIndexReader, PrefixIndexWriter } from './index-types.ts';
import { createLineMemory } from './line-memory.ts';
import { CONTROL_WORDS, LINE_BYTES, type RunViews } from './run-layout.ts';
import { createRunReader } from './run-reader.ts';
import { createRunWriter } from './run-writer.ts';

export type {
  BlockPosition,
  IndexOwner,
  MediumIndex,
  PrefixIndexHooks,
  PrefixIndexMemory,
  PrefixIndexReader,
  PrefixIndexStats,
  PrefixIndexWriter,
  SlotMask,
} from './index-types.ts';
export { MAX_INDEX_SLOTS, NO_POSITION } from './index-types.ts';

/** A head takes 8 bytes; a run with its names some 200 at least, and ten times that as a rule. */
const BYTES_PER_HEAD = 240;
const MIN_LINES = 64;

/** Reserves address space for any mix of keys and lists; memory is only used as the index fills. */
export function createPrefixIndexMemory(options: { maxBytes: number }): PrefixIndexMemory {
  const nLines = Math.max(MIN_LINES, Math.floor(options.maxBytes / LINE_BYTES));
  return {
    maxBytes: options.maxBytes,
    control: new SharedArrayBuffer(4 * CONTROL_WORDS),
    heads: new SharedArrayBuffer(8 * Math.max(MIN_LINES, Math.ceil(options.maxBytes / BYTES_PER_HEAD))),
    lines: createLineMemory(LINE_BYTES * nLines),
    keys: createLineMemory(LINE_BYTES * nLines),
  };
}

/** Starts with an empty index, whatever an earlier writer left behind. Only one writer may be in use. */
export function openPrefixIndexWriter(memory: PrefixIndexMemory): PrefixIndexWriter {
  return createRunWriter(viewsOf(memory), memory.maxBytes);
}

export function openPrefixIndexReader(memory: PrefixIndexMemory): PrefixIndexReader {
  return createRunReader(viewsOf(memory));
}

function viewsOf(memory: PrefixIndexMemory): RunViews {
  const words = new Uint32Array(memory.lines, 0, memory.lines.byteLength / 4);
  const heads = new Uint32Array(memory.heads);
  return {
    keys: new Uint32Array(memory.keys, 0, memory.keys.byteLength / 4),
    words,
    versions: new Int32Array(memory.lines, 0, memory.lines.byteLength / 4),
    heads,
    nHeads: heads.length / 2,
    control: new Int32Array(memory.control),
  };
}
