// The SDK tells its life on the console. Imported before it, this keeps it to itself unless INTEROP_LOG is set.
if (!process.env.INTEROP_LOG) {
    for (const method of ["debug", "info", "log", "trace", "warn", "error"]) console[method] = () => {};
}
