/** The frame that numbers a batch: 8 bytes, big-endian, unsigned. */

/** @returns null for a frame that is none */
export function readSeq(frame: Buffer): bigint | null {
  return frame.byteLength === 8 ? frame.readBigUInt64BE() : null;
}

export function seqFrame(seq: bigint): Buffer {
  const frame = Buffer.alloc(8);
  frame.writeBigUInt64BE(seq);
  return frame;
}
