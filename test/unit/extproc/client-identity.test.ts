import { describe, expect, test } from '@jest/globals';
import { identitiesOf, isAllowed } from '../../../src/extproc/client-identity.ts';

describe('names of a certificate', () => {
  test.each([
    ['one URI', 'URI:spiffe://cluster.local/ns/gateway/sa/envoy', ['URI:spiffe://cluster.local/ns/gateway/sa/envoy']],
    ['several kinds', 'DNS:localhost, IP Address:127.0.0.1', ['DNS:localhost', 'IP:127.0.0.1']],
    ['no names', undefined, []],
    ['an empty list', '', []],
    ['a kind nobody lists', 'othername:<unsupported>, DNS:a', ['DNS:a']],
    // Node quotes a value that would otherwise read as two names: one certificate must not speak for another.
    ['a value that looks like two', 'DNS:"evil.test, DNS:envoy.test"', ['DNS:evil.test, DNS:envoy.test']],
    ['a quoted quote', 'URI:"http://a/\\"b", DNS:c', ['URI:http://a/"b', 'DNS:c']],
    ['text that is no list of names', 'nonsense', []],
    ['a name, then nonsense', 'DNS:a, nonsense', []],
  ])('%s', (_, text, expected) => {
    expect(identitiesOf(text)).toEqual(expected);
  });

  test.each([
    ['the same URI', ['URI:spiffe://a/b'], true],
    ['a URI in other letters', ['URI:spiffe://a/B'], false],
    ['a DNS name in other letters', ['DNS:Envoy.test'], true],
    ['a part of the name', ['DNS:envoy'], false],
    ['the name under another kind', ['URI:envoy.test'], false],
    ['no name', [], false],
  ])('%s', (_, identities, expected) => {
    expect(isAllowed(identities, ['DNS:envoy.test', 'URI:spiffe://a/b'])).toBe(expected);
  });
});
