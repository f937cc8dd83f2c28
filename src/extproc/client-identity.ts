/**
 * Who a client of mutual TLS is, by the names (SAN) in its certificate, and whether it is on the list. That the certificate
 * is genuine has been settled by TLS before.
 */
import type { X509Certificate } from 'node:crypto';
import type { Http2Session, ServerHttp2Stream } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { status as grpcStatus } from '@grpc/grpc-js';

/** Kinds as `server.tls.allowedClients` spells them, by the spelling of Node. */
const KINDS: Readonly<Record<string, string>> = { DNS: 'DNS', URI: 'URI', 'IP Address': 'IP' };

/** One name: its kind, then its value, which Node quotes as JSON where it could be mistaken for two names. */
const NAME = /([A-Za-z ]+):("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)/y;

/**
 * @param subjectAltName as `X509Certificate.subjectAltName` gives it
 * @returns `DNS:…`, `URI:…`, `IP:…`; other kinds are left out; nothing at all when it is not understood to its end
 */
export function identitiesOf(subjectAltName: string | undefined): readonly string[] {
  const found: string[] = [];
  if (subjectAltName === undefined || subjectAltName === '') return found;
  NAME.lastIndex = 0;
  while (NAME.lastIndex < subjectAltName.length) {
    const parts = NAME.exec(subjectAltName);
    if (parts === null) return [];
    const kind = KINDS[parts[1]!];
    const value = parts[2]!;
    if (kind !== undefined) found.push(`${kind}:${value.startsWith('"') ? (JSON.parse(value) as string) : value}`);
  }
  return found;
}

/** DNS names are compared without regard to case, everything else to the letter. No wildcards. */
export function isAllowed(identities: readonly string[], allowed: readonly string[]): boolean {
  const wanted = new Set(allowed.map(comparable));
  return identities.some((identity) => wanted.has(comparable(identity)));
}

function comparable(identity: string): string {
  return identity.startsWith('DNS:') ? identity.toLowerCase() : identity;
}

/**
 * Once per connection, so that it costs a request nothing. A client that is not on the list keeps its connection, and
 * every stream on it, whatever the service, ends with PERMISSION_DENIED before anything of it is read.
 */
export function guardSession(session: Http2Session, allowed: readonly string[], onRefused: () => void): void {
  const certificate: X509Certificate | undefined = (session.socket as TLSSocket).getPeerX509Certificate?.();
  if (isAllowed(identitiesOf(certificate?.subjectAltName), allowed)) return;
  session.removeAllListeners('stream');
  session.on('stream', (stream: ServerHttp2Stream) => {
    stream.on('error', () => stream.destroy());
    stream.respond(
      {
        ':status': 200,
        'content-type': 'application/grpc+proto',
        'grpc-status': String(grpcStatus.PERMISSION_DENIED),
        'grpc-message': 'client identity not allowed',
      },
      { endStream: true },
    );
    stream.resume();
    onRefused();
  });
}
