// Tests run as real ES modules (see the `jest` script); @swc/jest only strips the types.
export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  extensionsToTreatAsEsm: ['.ts'],
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      { jsc: { target: 'es2024', parser: { syntax: 'typescript' } }, module: { type: 'es6' } },
    ],
  },
  reporters: ['default', '<rootDir>/test/support/summary-reporter.js'],
  maxWorkers: 2,
  // A fresh process per file: zeromq's native part lives once per process and keeps the first file's environment.
  workerIdleMemoryLimit: '1MB',
  testTimeout: 60_000,
};
