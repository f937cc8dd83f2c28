/**
 * What an engine says it used, read from response bytes cut anywhere: JSON bodies and SSE streams of the chat, completions,
 * responses and messages APIs. Keeps no more than one `usage` object in memory and never throws; bytes it can not read
 * simply tell nothing.
 *
 * Deliberately not here: validation of the response. Looks for one key at known depths and believes the rest.
 */

export type Usage = {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** `prompt_tokens_details.cached_tokens`, at most all of the prompt; null when the engine does not say. */
  readonly cachedTokens: number | null;
};

export type UsageReader = {
  push(chunk: Uint8Array): void;
  /** The last usage seen so far, null before any. */
  result(): Usage | null;
};

type PartialUsage = { promptTokens: number | null; completionTokens: number | null; cachedTokens: number | null };

/** @param contentType of the response; without one the first byte decides */
export function createUsageReader(contentType: string | undefined): UsageReader {
  const seen: PartialUsage = { promptTokens: null, completionTokens: null, cachedTokens: null };
  const finder = createUsageFinder((text) => merge(seen, text));
  let consume = consumerFor(contentType ?? '', finder);
  return {
    push(chunk) {
      if (consume === null) {
        const first = chunk.find((byte) => byte > SPACE);
        if (first === undefined) return;
        consume = first === OPEN_BRACE ? finder.push : createSseConsumer(finder);
      }
      consume(chunk, 0, chunk.length);
    },
    result() {
      const { promptTokens, completionTokens, cachedTokens: cached } = seen;
      if (promptTokens === null) return null;
      // Where several answers are asked for SGLang adds up what each of them found.
      const cachedTokens = cached === null ? null : Math.min(cached, promptTokens);
      return { promptTokens, completionTokens: completionTokens ?? 0, cachedTokens };
    },
  };
}

type Consume = (chunk: Uint8Array, start: number, end: number) => void;

/** One JSON text after another; `reset` begins the next. */
type UsageFinder = { readonly push: Consume; reset(): void };

const LINE_FEED = 0x0a;
const CARRIAGE_RETURN = 0x0d;
const SPACE = 0x20;
const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPEN_BRACKET = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

const MAX_USAGE_BYTES = 16 * 1024;
/** Beyond any context: a larger count is no count, and every mean and total would keep it. */
const MAX_TOKENS = 100_000_000;
const MAX_KEY_BYTES = 16;

function consumerFor(contentType: string, finder: UsageFinder): Consume | null {
  if (/^\s*text\/event-stream\b/i.test(contentType)) return createSseConsumer(finder);
  if (/^\s*(application|text)\/([\w.-]+\+)?json\b/i.test(contentType)) return finder.push;
  return contentType.trim() === '' ? null : () => undefined;
}

/** Passes on what follows `data:`. Engines write an event's JSON on one line, so every line end begins the next text. */
function createSseConsumer(finder: UsageFinder): Consume {
  const prefix = Buffer.from('data:');
  /** Bytes of the prefix matched on this line; −1 on a line of something else. */
  let matched = 0;
  return (chunk, start, end) => {
    let at = start;
    while (at < end) {
      const byte = chunk[at]!;
      if (byte === LINE_FEED || byte === CARRIAGE_RETURN) {
        finder.reset();
        matched = 0;
        at++;
      } else if (matched === prefix.length) {
        let lineEnd = at + 1;
        while (lineEnd < end && chunk[lineEnd] !== LINE_FEED && chunk[lineEnd] !== CARRIAGE_RETURN) lineEnd++;
        finder.push(chunk, at, lineEnd);
        at = lineEnd;
      } else {
        matched = matched >= 0 && byte === prefix[matched] ? matched + 1 : -1;
        at++;
      }
    }
  };
}

/**
 * Watches the structure of JSON text go by and hands over the value of `usage` at the top, or directly inside `response`
 * (responses API, streamed) or `message` (messages API, streamed). A `usage` anywhere else, in a text or deeper, is not one.
 */
function createUsageFinder(found: (text: string) => void): UsageFinder {
  let depth = 0;
  let inString = false;
  let escaped = false;
  /** Whether the container at depth 1 and at depth 2 is an object, and its latest key. */
  const isObject = [false, false, false];
  const keys = ['', '', ''];
  let keyExpected = false;
  /** Length of the key being read, −1 outside of one. */
  let keyLength = -1;
  const keyBytes = Buffer.alloc(MAX_KEY_BYTES);
  /** Depth of the object whose value is being captured, 0 when none is. */
  let captureDepth = 0;
  let captured = 0;
  let capture: Buffer | null = null;

  function stringByte(byte: number): void {
    if (escaped) escaped = false;
    else if (byte === BACKSLASH) escaped = true;
    else if (byte === QUOTE) {
      inString = false;
      if (keyLength >= 0) keys[depth] = keyLength <= MAX_KEY_BYTES ? keyBytes.toString('latin1', 0, keyLength) : '';
      keyLength = -1;
      return;
    }
    if (keyLength >= 0) {
      if (keyLength < MAX_KEY_BYTES) keyBytes[keyLength] = byte;
      keyLength++;
    }
  }

  function structureByte(byte: number): void {
    if (byte === QUOTE) {
      inString = true;
      keyLength = keyExpected ? 0 : -1;
      keyExpected = false;
    } else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
      depth++;
      keyExpected = depth <= 2 && byte === OPEN_BRACE;
      if (depth <= 2) isObject[depth] = keyExpected;
      if (depth <= 2) keys[depth] = '';
    } else if (byte === COLON) {
      if (captureDepth === 0 && isUsageKey()) {
        captureDepth = depth;
        captured = -1;
      }
    } else if (byte === COMMA) {
      if (depth === captureDepth) endCapture();
      keyExpected = depth <= 2 && depth > 0 && isObject[depth] === true;
    } else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
      if (depth === captureDepth) endCapture();
      keyExpected = false;
      if (depth > 0) depth--;
    }
  }

  function isUsageKey(): boolean {
    if (depth === 1) return isObject[1] === true && keys[1] === 'usage';
    if (depth !== 2 || isObject[2] !== true || keys[2] !== 'usage') return false;
    return isObject[1] === true && (keys[1] === 'response' || keys[1] === 'message');
  }

  function endCapture(): void {
    if (captureDepth > 0 && capture !== null && captured <= MAX_USAGE_BYTES)
      found(capture.toString('utf8', 0, captured));
    captureDepth = 0;
  }

  return {
    push(chunk, start, end) {
      for (let at = start; at < end; at++) {
        const byte = chunk[at]!;
        if (inString) stringByte(byte);
        else if (byte > SPACE) structureByte(byte);
        if (captureDepth === 0) continue;
        // The colon that began the capture is not part of it.
        if (captured >= 0 && captured < MAX_USAGE_BYTES) (capture ??= Buffer.alloc(MAX_USAGE_BYTES))[captured] = byte;
        captured = Math.min(captured + 1, MAX_USAGE_BYTES + 1);
      }
    },
    reset() {
      depth = 0;
      inString = escaped = keyExpected = false;
      keyLength = -1;
      captureDepth = 0;
    },
  };
}

/** The wordings of the four APIs; the messages API counts cached tokens beside `input_tokens`, all others inside. */
function merge(seen: PartialUsage, text: string): void {
  const usage = objectOf(text);
  if (usage === null) return;
  const besides = countOf(usage['cache_read_input_tokens']);
  const created = countOf(usage['cache_creation_input_tokens']);
  const input = countOf(usage['input_tokens']);
  const prompt = countOf(usage['prompt_tokens']) ?? (input === null ? null : input + (besides ?? 0) + (created ?? 0));
  const details = usage['prompt_tokens_details'] ?? usage['input_tokens_details'];
  const cached = isRecord(details) ? countOf(details['cached_tokens']) : besides;
  seen.promptTokens = prompt ?? seen.promptTokens;
  seen.completionTokens =
    countOf(usage['completion_tokens']) ?? countOf(usage['output_tokens']) ?? seen.completionTokens;
  seen.cachedTokens = cached ?? seen.cachedTokens;
}

function objectOf(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text);
    return isRecord(value) ? value : null;
  } catch {
    // A response that is not JSON has no usage; the engine's own client will complain.
    return null;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function countOf(value: unknown): number | null {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= MAX_TOKENS ? value : null;
}
