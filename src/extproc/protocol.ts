/**
 * Words of the endpoint picker protocol (Gateway API Inference Extension, proposal 004) and of this product, in one place.
 * Names and their small grammars only; how they are nested in protobuf is answers.ts and message-reader.ts.
 */
import type { Subset } from './picker.ts';

/** Header that names the chosen endpoints; also the key of the same string in the metadata namespace `envoy.lb`. */
export const DESTINATION = 'x-gateway-destination-endpoint';
/** Older spelling of the destination: first endpoint only. */
export const TARGET_POD = 'target-pod';
/** What vLLM and SGLang read: which of the data-parallel ranks behind the address computes the request, from 0. */
export const DATA_PARALLEL_RANK = 'x-data-parallel-rank';
/** Metadata namespace of the load balancer. */
export const LB_NAMESPACE = 'envoy.lb';
/** Key in `envoy.lb` that names, in the response phase, the endpoint that answered. */
export const SERVED = 'x-gateway-destination-endpoint-served';
/** Metadata namespace and key of the candidate hint. */
export const SUBSET_NAMESPACE = 'envoy.lb.subset_hint';
export const SUBSET = 'x-gateway-destination-endpoint-subset';
/** Response header that names the cause of a refusal. */
export const REASON_HEADER = 'x-warmpath-reason';

export const EXT_PROC_SERVICE = 'envoy.service.ext_proc.v3.ExternalProcessor';
/** HTTP/2 path of its only method. */
export const PROCESS_PATH = `/${EXT_PROC_SERVICE}/Process`;
/** Every service name health is reported for; all but `liveness` follow readiness. */
export const HEALTH_SERVICES = ['', 'liveness', 'readiness', EXT_PROC_SERVICE] as const;

/** Largest piece of a body echoed in one message: below the 64 KiB Envoy recommends. */
export const ECHO_CHUNK_BYTES = 62_000;

/** What a data plane can compare and dial: an IP literal and a port. Nothing else ever becomes a header value. */
const ADDRESS = /^(?:[0-9.]{7,15}|\[[0-9a-f:.]{2,45}\]):[0-9]{1,5}$/;

/** Header and metadata value for endpoints in order of preference, null when there is none or one is not an address. */
export function destinationValue(endpoints: readonly string[]): string | null {
  if (endpoints.length === 0) return null;
  for (const endpoint of endpoints) if (!ADDRESS.test(endpoint)) return null;
  return endpoints.length === 1 ? endpoints[0]! : endpoints.join(',');
}

/** Candidate hint from the strings of its list, or from one comma-separated string. */
export function subsetOf(values: readonly string[]): Subset {
  const addresses: string[] = [];
  for (const value of values) {
    for (const part of value.split(',')) {
      const address = part.trim();
      if (address !== '') addresses.push(address);
    }
  }
  return { kind: 'only', addresses };
}

/** A reason as it may stand in a header; anything else would let a value from outside into the answer. */
export function reasonWord(reason: string): string {
  return /^[a-z0-9_]{1,64}$/.test(reason) ? reason : 'unspecified';
}
