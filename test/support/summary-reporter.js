/** Ends a run with one plain line that programs read: `N passed, N failed`. */
export default class SummaryReporter {
  onRunComplete(_contexts, results) {
    // A file that does not even load has no failed test of its own.
    const nFailed = results.numFailedTests + results.numRuntimeErrorTestSuites;
    process.stdout.write(`${results.numPassedTests} passed, ${nFailed} failed\n`);
  }
}
