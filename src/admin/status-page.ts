/** The page at `/`: one plain HTML file that shows readiness and endpoints and asks again every two seconds. */

/** Everything shown is put in as text, never as markup: names come from whoever runs the pods. */
export function statusPage(): string {
  return PAGE;
}

const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Warmpath</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color-scheme: light dark }
  table { border-collapse: collapse; width: 100% }
  th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; font-variant-numeric: tabular-nums }
  .number { text-align: right }
</style>
<h1>Warmpath</h1>
<p id="ready">asking…</p>
<table>
  <thead><tr><th>name<th>address<th>model<th>trust<th>events<th class="number">blocks<th class="number">in flight
    <th class="number">cached tokens, predicted<th class="number">observed</thead>
  <tbody id="endpoints"></tbody>
</table>
<p><a href="/metrics">metrics</a> · <a href="/readyz">readiness</a> · <a href="/api/v1/endpoints">endpoints</a> ·
  <a href="/api/v1/decisions">decisions</a> · <a href="/api/v1/config">configuration</a></p>
<script>
  const show = async () => {
    try {
      const readiness = await (await fetch('/readyz')).json();
      document.querySelector('#ready').textContent = (readiness.ready ? 'ready' : 'not ready') + ': ' +
        Object.entries(readiness.conditions).map(([name, value]) => name + ' ' + value).join(', ');
      const endpoints = await (await fetch('/api/v1/endpoints')).json();
      document.querySelector('#endpoints').replaceChildren(...endpoints.map((endpoint) => {
        const row = document.createElement('tr');
        const cells = [endpoint.name, endpoint.address, endpoint.model, endpoint.trust, endpoint.kvEvents?.state,
          endpoint.kvEvents?.blocks, endpoint.load?.inFlightRequests, endpoint.cachedTokens?.predicted,
          endpoint.cachedTokens?.observed];
        row.append(...cells.map((value, index) => {
          const cell = document.createElement('td');
          if (index > 4) cell.className = 'number';
          cell.textContent = value ?? '–';
          return cell;
        }));
        return row;
      }));
    } catch {
      document.querySelector('#ready').textContent = 'no answer';
    }
  };
  show();
  setInterval(show, 2000);
</script>
</html>
`;
