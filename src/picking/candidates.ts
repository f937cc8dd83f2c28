/** Which endpoints may serve a request: ready, of its model, among those the data plane allows. */
import type { EndpointStore } from '../endpoints/endpoint-store.ts';
import type { Endpoint } from '../endpoints/endpoint.ts';
import type { PickError, PickRequest } from '../extproc/endpoint-picker.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { noEndpoint, unknownModel } from './pick-errors.ts';

export type Selected = {
  readonly kind: 'selected';
  readonly endpoints: readonly Endpoint[];
  readonly model: string;
  readonly adapter: string | null;
};

export function selectCandidates(
  endpoints: EndpointStore,
  request: InferenceRequest,
  { subset }: PickRequest,
): Selected | PickError {
  const known = request.model === '' ? null : endpoints.candidates(request.model);
  const anyModel = request.model === '' || (known === null && request.api === 'other');
  if (!anyModel && known === null && endpoints.all().length > 0) return unknownModel(request.model);
  const ready = anyModel ? endpoints.ready() : (known?.endpoints.filter((endpoint) => endpoint.ready) ?? []);
  const model = known?.model ?? null;
  if (ready.length === 0) return noEndpoint('no_ready_endpoint', 'No endpoint is ready to serve this request.', model);
  const allowed = subset.kind === 'all' ? ready : ready.filter(({ address }) => subset.addresses.includes(address));
  if (allowed.length === 0) {
    return noEndpoint('subset_without_endpoint', 'None of the endpoints the data plane allows is ready.', model);
  }
  return {
    kind: 'selected',
    endpoints: allowed,
    model: known?.model ?? '',
    adapter: known?.adapter ?? null,
  };
}
