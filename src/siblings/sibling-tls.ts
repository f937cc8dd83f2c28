/**
 * The channel to a sibling where the gRPC port speaks TLS: replicas show each other the certificate they serve with, and
 * accept only who has the same identity, a name (SAN) of their own certificate or the very same certificate.
 */
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createSecureContext, type PeerCertificate } from 'node:tls';
import { credentials, type ChannelCredentials } from '@grpc/grpc-js';
import { identitiesOf } from '../extproc/client-identity.ts';

/** Read anew for every channel: certificates are renewed. */
export async function tlsChannel(files: {
  readonly certFile: string;
  readonly keyFile: string;
  readonly clientCaFile: string | null;
}): Promise<ChannelCredentials> {
  const [cert, key] = await Promise.all([readFile(files.certFile), readFile(files.keyFile)]);
  const ca = files.clientCaFile === null ? [cert] : [cert, await readFile(files.clientCaFile)];
  const own = new X509Certificate(cert);
  const context = createSecureContext({ cert, key, ca, allowPartialTrustChain: true, minVersion: 'TLSv1.2' });
  return credentials.createFromSecureContext(context, {
    checkServerIdentity: (_host, peer) => (isSame(own, peer) ? undefined : new Error('sibling has another identity')),
  });
}

function isSame(own: X509Certificate, peer: PeerCertificate): boolean {
  if (peer.fingerprint256 === own.fingerprint256) return true;
  const names = new Set(identitiesOf(own.subjectAltName).map(comparable));
  return identitiesOf(peer.subjectaltname).some((name) => names.has(comparable(name)));
}

function comparable(identity: string): string {
  return identity.startsWith('DNS:') ? identity.toLowerCase() : identity;
}
