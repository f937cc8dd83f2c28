/**
 * Bytes of one ZMTP 3 connection in, messages out (rfc.zeromq.org/spec/23 and /37, mechanism NULL). Messages are handed out
 * where they lie in what was read, without a copy; only what a read cut off is kept until the rest comes. No I/O, and no
 * answers: who reads decides what a command means.
 */
import { WarmpathError } from '../errors.ts';

export type ZmtpReaderEffects = {
  /** The peer speaks ZMTP 3 and waits for our READY. */
  onGreeting(): void;
  /** The peer is ready. @param socketType `PUB`, `ROUTER`, … */
  onReady(socketType: string): void;
  /** Frames are valid until the call returns. */
  onMessage(frames: readonly Buffer[]): void;
  /** Asked when more has been read: whether it is to wait for the next `push`. */
  isTurnOver(): boolean;
  onPing(context: Buffer): void;
};

export type ZmtpReader = {
  /**
   * @param chunk what was read; nothing, to go on with what waits
   * @returns whether something waits that is not for lack of bytes
   * @throws WarmpathError `peer_failed` for what no ZMTP 3 peer sends; nothing may be pushed after it
   */
  push(chunk: Buffer): boolean;
  /** Memory taken by a large message whose end has not come, 0 without one. */
  keptBytes(): number;
};

export const GREETING_BYTES = 64;
export const MORE = 1;
export const LONG = 2;
export const COMMAND = 4;

const READY = 'READY';
const ERROR = 'ERROR';
const PING = 'PING';
const SOCKET_TYPE = 'socket-type';
/** Engines send four at most. */
const MAX_FRAMES = 64;
/** Names, topics and error texts. */
const MAX_COMMAND_BYTES = 4096;
/** Of a refusal's text, in messages. */
const MAX_REASON_BYTES = 200;
const FIRST_KEPT_BYTES = 4096;
/** Memory of a large message that is over is given back. */
const MAX_KEPT_BYTES = 256 * 1024;

/** @param maxMessageBytes all frames together; more is refused before memory is taken for it */
export function createZmtpReader(effects: ZmtpReaderEffects, maxMessageBytes: number): ZmtpReader {
  let phase: 'greeting' | 'handshake' | 'traffic' = 'greeting';
  /** What is left of earlier reads: the beginning of one greeting, command or message. */
  let kept: Buffer | null = null;
  let nKept = 0;
  /** Behind the last whole frame of the message being read, counted from the message's first byte. */
  let frameAt = 0;
  /** Where whole frames of it begin and end. */
  const bounds: number[] = [];

  const keep = (chunk: Buffer): Buffer => {
    const nNeeded = nKept + chunk.byteLength;
    if (kept === null || kept.byteLength < nNeeded) {
      const grown = Buffer.allocUnsafeSlow(
        Math.max(FIRST_KEPT_BYTES, nNeeded, kept === null ? 0 : 2 * kept.byteLength),
      );
      if (kept !== null) kept.copy(grown, 0, 0, nKept);
      kept = grown;
    }
    chunk.copy(kept, nKept);
    nKept = nNeeded;
    return kept;
  };

  /** @returns bytes of the greeting, 0 while it is not whole */
  const readGreeting = (bytes: Buffer, start: number, end: number): number => {
    const n = end - start;
    const isZmtp = bytes[start] === 0xff && (n < 10 || bytes[start + 9] === 0x7f);
    if (!isZmtp) throw violation('it does not begin as ZMTP does');
    if (n > 10 && bytes[start + 10]! < 3) throw violation(`ZMTP ${bytes[start + 10]}, expected 3`);
    if (n < GREETING_BYTES) return 0;
    const mechanism = bytes.toString('latin1', start + 12, start + 32).replace(/\0+$/, '');
    if (mechanism !== 'NULL') throw violation(`mechanism ${JSON.stringify(mechanism)}, expected NULL`);
    phase = 'handshake';
    effects.onGreeting();
    return GREETING_BYTES;
  };

  const readCommand = (body: Buffer): void => {
    const nName = body[0] ?? 0;
    const name = body.toString('latin1', 1, 1 + nName);
    if (phase === 'traffic') {
      // Two bytes behind the name are its time to live.
      if (name === PING) effects.onPing(body.subarray(1 + nName + 2));
      return;
    }
    if (name === ERROR) {
      const reason = body.toString('latin1', 2 + nName, 2 + nName + MAX_REASON_BYTES);
      throw violation(`refused by the peer: ${JSON.stringify(reason)}`);
    }
    if (name !== READY) throw violation(`command ${JSON.stringify(name)}, expected READY`);
    phase = 'traffic';
    effects.onReady(readProperties(body, 1 + nName).get(SOCKET_TYPE) ?? '');
  };

  /** @returns bytes of the command or message, 0 while it is not whole */
  const readOne = (bytes: Buffer, start: number, end: number): number => {
    for (;;) {
      const at = start + frameAt;
      if (end - at < 2) return 0;
      const flags = bytes[at]!;
      const isLong = (flags & LONG) !== 0;
      if (flags > (MORE | LONG | COMMAND)) throw violation(`frame flags ${flags}`);
      if (isLong && end - at < 9) return 0;
      const bodyAt = at + (isLong ? 9 : 2);
      const nBody = isLong ? bytes.readUInt32BE(at + 1) * 2 ** 32 + bytes.readUInt32BE(at + 5) : bytes[at + 1]!;
      const isCommand = (flags & COMMAND) !== 0;
      const bodyEnd = bodyAt + nBody;
      if (bodyEnd - start > maxMessageBytes || (isCommand && nBody > MAX_COMMAND_BYTES)) {
        throw violation(`${nBody} bytes in a ${isCommand ? 'command' : 'message'}`);
      }
      if (!isCommand && phase !== 'traffic') throw violation('a message before READY');
      if (bodyEnd > end) return 0;
      if (isCommand) {
        readCommand(bytes.subarray(bodyAt, bodyEnd));
        if (bounds.length === 0) return bodyEnd - start;
        // libzmq sends its heartbeats between the frames of a message too.
        frameAt = bodyEnd - start;
        continue;
      }
      bounds.push(bodyAt - start, bodyEnd - start);
      frameAt = bodyEnd - start;
      if ((flags & MORE) === 0) {
        handOut(bytes, start);
        return bodyEnd - start;
      }
      if (bounds.length >= 2 * MAX_FRAMES) throw violation(`more than ${MAX_FRAMES} frames in a message`);
    }
  };

  const handOut = (bytes: Buffer, start: number): void => {
    const frames: Buffer[] = [];
    for (let i = 0; i < bounds.length; i += 2) frames.push(bytes.subarray(start + bounds[i]!, start + bounds[i + 1]!));
    effects.onMessage(frames);
  };

  return {
    push(chunk) {
      const isContinued = nKept > 0;
      const bytes = isContinued ? keep(chunk) : chunk;
      const end = isContinued ? nKept : chunk.byteLength;
      let start = 0;
      let isTurnOver = false;
      while (start < end && !isTurnOver) {
        const nRead = phase === 'greeting' ? readGreeting(bytes, start, end) : readOne(bytes, start, end);
        if (nRead === 0) break;
        start += nRead;
        frameAt = 0;
        bounds.length = 0;
        isTurnOver = start < end && effects.isTurnOver();
      }
      const waits = isTurnOver;
      if (!isContinued) {
        if (start < end) keep(chunk.subarray(start));
        return waits;
      }
      nKept = end - start;
      if (start > 0) bytes.copyWithin(0, start, end);
      if (bytes.byteLength > MAX_KEPT_BYTES && nKept < MAX_KEPT_BYTES / 2) kept = Buffer.from(bytes.subarray(0, nKept));
      return waits;
    },
    keptBytes: () => (kept !== null && kept.byteLength > MAX_KEPT_BYTES ? kept.byteLength : 0),
  };
}

/** Pairs of a name (one byte of length) and a value (four of them); names in lower case. */
function readProperties(body: Buffer, from: number): Map<string, string> {
  const properties = new Map<string, string>();
  for (let at = from; at < body.byteLength;) {
    const nName = body[at]!;
    const valueAt = at + 1 + nName + 4;
    if (valueAt > body.byteLength) throw violation('READY ends inside a property');
    const nValue = body.readUInt32BE(valueAt - 4);
    if (valueAt + nValue > body.byteLength) throw violation('READY ends inside a property');
    const name = body.toString('latin1', at + 1, at + 1 + nName).toLowerCase();
    properties.set(name, body.toString('latin1', valueAt, valueAt + nValue));
    at = valueAt + nValue;
  }
  return properties;
}

function violation(what: string): WarmpathError {
  return new WarmpathError('peer_failed', `not a ZMTP 3 peer: ${what}`);
}
