// A reporter that ends with one line: how many stories passed and how many failed.
export default async function* tally(events) {
    let passed = 0;
    let failed = 0;
    for await (const { type, data } of events) {
        if (type === "test:fail") failed++;
        if (type === "test:pass" && data.skip === undefined) passed++;
    }
    yield `${passed} passed, ${failed} failed\n`;
}
