/**
 * Where the API server is and how to sign in: a kubeconfig file, or the service account of the pod this runs in. The only
 * file that knows @kubernetes/client-node, and only its KubeConfig: its informers stop for good on a reset or a 401.
 * The package takes 90 MB, so it is loaded when Kubernetes is really asked for.
 */
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import type { KubeConfig } from '@kubernetes/client-node';
import { parse } from 'yaml';
import { errorText, WarmpathError } from '../errors.ts';
import type { ApiAccess, ApiCredentials } from './api-client.ts';
import { listOf, recordOf, textOf } from './objects.ts';

/**
 * @param kubeconfig path of a file; null = the service account of this pod, else what kubectl would use here
 * @throws `config_invalid` where there is no cluster to talk to
 */
export async function loadApiAccess(kubeconfig: string | null): Promise<ApiAccess> {
  const client = await import('@kubernetes/client-node');
  if (kubeconfig === null) {
    const config = new client.KubeConfig();
    loading('the default kubeconfig', () => config.loadFromDefault());
    const { server, namespace } = clusterOf(config, 'the default kubeconfig');
    return { server, namespace, credentials: shared(() => credentialsOf(config, tokenFileOf(config))) };
  }
  const read = async (): Promise<Loaded> => {
    const text = await readFile(kubeconfig, 'utf8');
    // By path and not by text: the paths in it are relative to it.
    const config = new client.KubeConfig();
    loading(kubeconfig, () => config.loadFromFile(kubeconfig));
    return { text, config, tokenFile: tokenFileOf(config) ?? standardTokenFile(text, kubeconfig, config) };
  };
  let loaded: Loaded;
  try {
    loaded = await read();
  } catch (error) {
    if (error instanceof WarmpathError) throw error;
    throw new WarmpathError('config_invalid', `cannot read the kubeconfig ${kubeconfig}: ${errorText(error)}`, {
      cause: error,
    });
  }
  const { server, namespace } = clusterOf(loaded.config, kubeconfig);
  return {
    server,
    namespace,
    credentials: shared(async () => {
      // Whoever rotates a kubeconfig writes it anew; one that is the same keeps what plug-ins have cached.
      if ((await readFile(kubeconfig, 'utf8')) !== loaded.text) loaded = await read();
      return credentialsOf(loaded.config, loaded.tokenFile);
    }),
  };
}

/** Done once for all who ask meanwhile: a plug-in that hangs is one process, however often it is asked for. */
function shared<T>(work: () => Promise<T>): () => Promise<T> {
  let pending: Promise<T> | null = null;
  return () => (pending ??= work().finally(() => (pending = null)));
}

type Loaded = { readonly text: string; readonly config: KubeConfig; readonly tokenFile: string | null };

function loading(name: string, load: () => void): void {
  try {
    load();
  } catch (error) {
    throw new WarmpathError('config_invalid', `cannot read ${name}: ${errorText(error)}`, { cause: error });
  }
}

function clusterOf(config: KubeConfig, name: string): { server: URL; namespace: string | null } {
  const cluster = config.getCurrentCluster();
  if (cluster === null) {
    throw new WarmpathError('config_invalid', `${name} must have a current context with a cluster, got none`);
  }
  if (cluster.proxyUrl) {
    throw new WarmpathError(
      'config_invalid',
      `${name} must name a server that is reached without a proxy, got proxy-url`,
    );
  }
  if (!URL.canParse(cluster.server)) {
    throw new WarmpathError(
      'config_invalid',
      `${name} must name a server by its URL, got ${JSON.stringify(cluster.server)}`,
    );
  }
  // A namespace from a file of the pod may end with a line end.
  const namespace = config.getContextObject(config.getCurrentContext())?.namespace?.trim() ?? '';
  return { server: new URL(cluster.server), namespace: namespace === '' ? null : namespace };
}

/** The package keeps what it read from a token file for a minute, during which a rotated token is refused. */
async function credentialsOf(config: KubeConfig, tokenFile: string | null): Promise<ApiCredentials> {
  const options: Parameters<KubeConfig['applyToHTTPSOptions']>[0] = {};
  const isTls = config.getCurrentCluster()?.server.startsWith('https:') === true;
  if (isTls) await config.applyToHTTPSOptions(options);
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(options.headers ?? {})) headers[name.toLowerCase()] = String(value);
  const token =
    tokenFile === null ? (isTls ? null : config.getCurrentUser()?.token) : (await readFile(tokenFile, 'utf8')).trim();
  if (token) headers.authorization = `Bearer ${token}`;
  else if (options.auth) headers.authorization = `Basic ${Buffer.from(options.auth).toString('base64')}`;
  const { ca, cert, key, rejectUnauthorized } = options as ApiCredentials['tls'];
  const { servername } = options as { servername?: string };
  return { headers, tls: { ca, cert, key, rejectUnauthorized, servername } };
}

function tokenFileOf(config: KubeConfig): string | null {
  const provider = recordOf(config.getCurrentUser()?.authProvider);
  return textOf(recordOf(provider.config).tokenFile) || null;
}

/** `tokenFile` of a kubeconfig user, which the package does not know. */
function standardTokenFile(text: string, kubeconfig: string, config: KubeConfig): string | null {
  const name = config.getCurrentUser()?.name;
  const user = listOf(recordOf(parse(text)).users)
    .map(recordOf)
    .find((one) => one.name === name);
  const path = textOf(recordOf(user?.user).tokenFile);
  return path === '' ? null : resolve(dirname(kubeconfig), path);
}
