/** The trace a request belongs to (W3C Trace Context), for whoever looks for its decision. Never an identity: it is the client's word. */

/** version, trace id, parent id, flags; later versions may add to it. */
const TRACEPARENT = /^(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-|$)/i;

/** @returns 32 hex digits in lower case, null where the header is missing or says nothing that can be a trace id */
export function traceIdOf(traceparent: string | undefined): string | null {
  return traceparent === undefined ? null : (TRACEPARENT.exec(traceparent)?.[1]?.toLowerCase() ?? null);
}
