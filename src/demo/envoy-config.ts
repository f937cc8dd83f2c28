/**
 * The bootstraps of `envoy/` with other addresses in them: what the demo and the end-to-end tests start Envoy with, so
 * that the files people copy are the files that are exercised. Does not invent settings of its own.
 */
import { readFileSync } from 'node:fs';
import { parse } from 'yaml';

export type EnvoyTemplate = 'buffered' | 'full-duplex' | 'headers-only';

export type EnvoyConfigOptions = {
  readonly template: EnvoyTemplate;
  /** `ip:port` of every member of the pods cluster. */
  readonly pods: readonly string[];
  /** 0 (default) picks a free port, here and below. */
  readonly listenPort?: number;
  readonly adminPort?: number;
  /** Overrides what the file says, for modes that have no file of their own. */
  readonly requestBodyMode?: 'BUFFERED' | 'BUFFERED_PARTIAL';
} & (
  | {
      readonly withExtProc: 'yes';
      /** `ip:port` Envoy reaches Warmpath at. */
      readonly extProcAddress: string;
    }
  /** The same listener without Warmpath, pods in Envoy's own round robin: the baseline. */
  | { readonly withExtProc: 'no' }
);

/** An Envoy bootstrap as plain data; JSON of it is a valid configuration file. */
export type EnvoyBootstrap = { readonly [key: string]: unknown };

const EXT_PROC_FILTER = 'envoy.filters.http.ext_proc';
const PODS_CLUSTER = 'pods';
const WARMPATH_CLUSTER = 'warmpath';

/** The parts of our own files that are changed; everything else passes through untouched. */
type Bootstrap = {
  admin: { address: SocketAddress };
  static_resources: {
    listeners: [{ address: SocketAddress; filter_chains: [{ filters: [{ typed_config: HttpConnectionManager }] }] }];
    clusters: Cluster[];
  };
};
type SocketAddress = { socket_address: { address: string; port_value: number } };
type HttpConnectionManager = {
  http_filters: { name: string; typed_config: { processing_mode: { request_body_mode: string } } }[];
  route_config: { virtual_hosts: { routes: { typed_per_filter_config?: Record<string, unknown> }[] }[] };
};
type Cluster = {
  name: string;
  lb_policy?: string;
  load_balancing_policy?: unknown;
  load_assignment: { endpoints: [{ lb_endpoints: { endpoint: { address: SocketAddress } }[] }] };
};

/** Path of a bootstrap file, valid from the sources and from the built package alike. */
export function envoyTemplatePath(template: EnvoyTemplate): URL {
  return new URL(`../../envoy/warmpath-${template}.yaml`, import.meta.url);
}

export function envoyConfig(options: EnvoyConfigOptions): EnvoyBootstrap {
  const bootstrap = parse(readFileSync(envoyTemplatePath(options.template), 'utf8')) as Bootstrap;
  bootstrap.admin.address = socketAddress(`127.0.0.1:${options.adminPort ?? 0}`);
  const { listeners, clusters } = bootstrap.static_resources;
  const [listener] = listeners;
  listener.address = socketAddress(`127.0.0.1:${options.listenPort ?? 0}`);
  const manager = listener.filter_chains[0].filters[0].typed_config;
  setMembers(clusterNamed(clusters, PODS_CLUSTER), options.pods);
  if (options.withExtProc === 'yes') {
    setMembers(clusterNamed(clusters, WARMPATH_CLUSTER), [options.extProcAddress]);
    const filter = manager.http_filters.find(({ name }) => name === EXT_PROC_FILTER)!;
    filter.typed_config.processing_mode.request_body_mode =
      options.requestBodyMode ?? filter.typed_config.processing_mode.request_body_mode;
  } else {
    removeExtProc(bootstrap, manager);
  }
  return bootstrap;
}

function removeExtProc(bootstrap: Bootstrap, manager: HttpConnectionManager): void {
  manager.http_filters = manager.http_filters.filter(({ name }) => name !== EXT_PROC_FILTER);
  for (const { routes } of manager.route_config.virtual_hosts) {
    for (const route of routes) delete route.typed_per_filter_config;
  }
  const resources = bootstrap.static_resources;
  resources.clusters = resources.clusters.filter(({ name }) => name !== WARMPATH_CLUSTER);
  const pods = clusterNamed(resources.clusters, PODS_CLUSTER);
  delete pods.load_balancing_policy;
  pods.lb_policy = 'ROUND_ROBIN';
}

function clusterNamed(clusters: readonly Cluster[], name: string): Cluster {
  return clusters.find((cluster) => cluster.name === name)!;
}

function setMembers(cluster: Cluster, addresses: readonly string[]): void {
  cluster.load_assignment.endpoints[0].lb_endpoints = addresses.map((address) => ({
    endpoint: { address: socketAddress(address) },
  }));
}

function socketAddress(address: string): SocketAddress {
  const colon = address.lastIndexOf(':');
  const host = address.slice(0, colon).replace(/^\[(.*)\]$/, '$1');
  return { socket_address: { address: host, port_value: Number(address.slice(colon + 1)) } };
}
