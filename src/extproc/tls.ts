/**
 * TLS for the gRPC port: certificates read from files, read again when the files change, or one made at start. A new
 * certificate that cannot be used keeps the old one and says so. Client certificates are required where a client CA is
 * configured.
 */
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import { experimental, ServerCredentials } from '@grpc/grpc-js';
import { generate } from 'selfsigned';
import type { Clock, Timer } from '../clock.ts';
import { errorText, WarmpathError } from '../errors.ts';
import type { Log } from '../log.ts';

export type TlsFiles = {
  readonly certFile: string;
  readonly keyFile: string;
  /** CA clients must come from: mutual TLS. */
  readonly clientCaFile: string | null;
  /** Names (SAN) of the clients that may ask, `DNS:…`, `URI:…` or `IP:…`; none = every client of the CA. */
  readonly allowedClients?: readonly string[];
  /** How often the files are compared, default 10 s. By content: Kubernetes swaps a link, which no file watch survives. */
  readonly reloadEveryMs?: number;
};

export type ServerTls = {
  readonly credentials: ServerCredentials;
  stop(): void;
};

type Material = { readonly cert: Buffer; readonly key: Buffer; readonly clientCa: Buffer | null };
type Provider = Parameters<typeof experimental.createCertificateProviderServerCredentials>[0];
type Listener<T> = (update: T | null) => void;

const RELOAD_EVERY_MS = 10_000;
const DAY_MS = 86_400_000;
/** Longer than any process runs: nobody is there to renew it. */
const SELF_SIGNED_DAYS = 3650;

/** Rejects when the first reading fails: a server without its certificate must not start. */
export async function createReloadingTls(files: TlsFiles, deps: { log: Log; clock: Clock }): Promise<ServerTls> {
  let current = await readMaterial(files);
  prove(current, files);
  let timer: Timer | null = null;
  let stopped = false;
  let complained = '';
  const identity = new Set<Listener<{ certificate: Buffer; privateKey: Buffer }>>();
  const ca = new Set<Listener<{ caCertificate: Buffer }>>();

  // Handed over one microtask after subscription: grpc-js subscribes before it is able to take an update.
  const provider: Provider = {
    addIdentityCertificateListener(listener) {
      identity.add(listener);
      queueMicrotask(() => listener({ certificate: current.cert, privateKey: current.key }));
    },
    removeIdentityCertificateListener: (listener) => void identity.delete(listener),
    addCaCertificateListener(listener) {
      ca.add(listener);
      queueMicrotask(() => listener({ caCertificate: current.clientCa ?? Buffer.alloc(0) }));
    },
    removeCaCertificateListener: (listener) => void ca.delete(listener),
  };

  async function reload(): Promise<void> {
    try {
      const next = await readMaterial(files);
      const isSame = sameMaterial(next, current);
      if (!isSame) prove(next, files);
      complained = '';
      if (stopped || isSame) return;
      current = next;
      for (const listener of ca) listener({ caCertificate: next.clientCa ?? Buffer.alloc(0) });
      for (const listener of identity) listener({ certificate: next.cert, privateKey: next.key });
      deps.log.info('tls certificate reloaded', { certFile: files.certFile });
    } catch (error) {
      const text = errorText(error);
      if (text !== complained) deps.log.warn('tls certificate not reloaded, the old one stays', { error: text });
      complained = text;
    }
  }

  function schedule(): void {
    timer = deps.clock.after(files.reloadEveryMs ?? RELOAD_EVERY_MS, () => {
      void reload().then(() => {
        if (!stopped) schedule();
      });
    });
  }

  schedule();
  return {
    // First the identity, then the CA: grpc-js 1.14 names them the other way round in its types.
    credentials: experimental.createCertificateProviderServerCredentials(
      provider,
      files.clientCaFile === null ? null : provider,
      files.clientCaFile !== null,
    ),
    stop() {
      stopped = true;
      timer?.cancel();
    },
  };
}

/**
 * Encryption without identity: what the inference extension expects of a picker, whose data planes do not verify.
 * The key never leaves the process; every start makes another one.
 */
export async function createSelfSignedTls(clock: Clock): Promise<ServerTls> {
  const { private: key, cert } = await generate([{ name: 'commonName', value: 'warmpath' }], {
    keyType: 'ec',
    algorithm: 'sha256',
    notBeforeDate: new Date(clock.unixMs() - DAY_MS),
    notAfterDate: new Date(clock.unixMs() + SELF_SIGNED_DAYS * DAY_MS),
  });
  const pair = { private_key: Buffer.from(key), cert_chain: Buffer.from(cert) };
  return { credentials: ServerCredentials.createSsl(null, [pair]), stop: () => undefined };
}

async function readMaterial(files: TlsFiles): Promise<Material> {
  const cert = await readPem(files.certFile, 'server.tls.certFile');
  const key = await readPem(files.keyFile, 'server.tls.keyFile');
  const clientCa = files.clientCaFile === null ? null : await readPem(files.clientCaFile, 'server.tls.clientCaFile');
  return { cert, key, clientCa };
}

/** What does not work is refused here and not at the next handshake. */
function prove({ cert, key, clientCa }: Material, files: TlsFiles): void {
  try {
    createSecureContext({ cert, key, minVersion: 'TLSv1.2' });
  } catch (error) {
    throw new WarmpathError(
      'io_failed',
      `TLS files do not fit together: ${files.certFile}, ${files.keyFile}: ${errorText(error)}`,
      { cause: error },
    );
  }
  if (clientCa !== null) proveCa(clientCa.toString('latin1'), files.clientCaFile!);
}

/** OpenSSL takes what it can read of a file, be it nothing: then no client would be let in, or some no longer. */
function proveCa(pem: string, path: string): void {
  const certificates = pem.match(CERTIFICATE) ?? [];
  const nBegun = pem.split(CERTIFICATE_BEGIN).length - 1;
  const problem =
    nBegun === 0
      ? 'got none, expected PEM certificates'
      : certificates.length < nBegun
        ? `got ${nBegun} of which one is cut off`
        : certificates.map(problemOf).find((text) => text !== null);
  if (problem === undefined) return;
  throw new WarmpathError('io_failed', `server.tls.clientCaFile: no certificates of a CA in ${path}: ${problem}`);
}

function problemOf(certificate: string): string | null {
  try {
    new X509Certificate(certificate);
    return null;
  } catch (error) {
    return errorText(error);
  }
}

const CERTIFICATE_BEGIN = '-----BEGIN CERTIFICATE-----';
const CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g;

async function readPem(path: string, key: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new WarmpathError('io_failed', `${key}: cannot read ${path}: ${errorText(error)}`, { cause: error });
  }
}

function sameMaterial(a: Material, b: Material): boolean {
  const sameCa = a.clientCa === null ? b.clientCa === null : b.clientCa !== null && a.clientCa.equals(b.clientCa);
  return sameCa && a.cert.equals(b.cert) && a.key.equals(b.key);
}
