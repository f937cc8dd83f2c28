/** The model named in a multipart form, as audio requests send it. Deliberately nothing else of the form. */

/** Forms have a handful of parts; the model is looked for among the first of them. */
const MAX_PARTS = 64;
const MAX_HEADER_BYTES = 1024;
const MAX_MODEL_BYTES = 1024;

/** Value of the part named `model`, null when the form shows none (RFC 7578). */
export function modelOfMultipart(contentType: string, body: Uint8Array): string | null {
  const boundary = /;\s*boundary=(?:"([^"]{1,70})"|([^;\s]{1,70}))/i.exec(contentType);
  if (boundary === null) return null;
  const form = Buffer.from(body.buffer, body.byteOffset, body.length);
  const delimiter = `--${boundary[1] ?? boundary[2]}`;
  let at = form.indexOf(delimiter);
  for (let part = 0; at >= 0 && part < MAX_PARTS; part++, at = form.indexOf(delimiter, at + delimiter.length)) {
    const head = form.subarray(at, at + MAX_HEADER_BYTES).toString('latin1');
    const headEnd = head.indexOf('\r\n\r\n');
    if (headEnd < 0 || !/;\s*name="?model"?\s*(;|\r|$)/i.test(head.slice(0, headEnd))) continue;
    const start = at + headEnd + 4;
    const end = form.indexOf(`\r\n${delimiter}`, start);
    return end < 0 || end - start > MAX_MODEL_BYTES ? null : form.toString('utf8', start, end).trim();
  }
  return null;
}
