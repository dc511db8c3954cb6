// JSON: parsed from what a user wrote, merged, compared.

export type Json = { [name: string]: unknown };

export const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** `base` with the fields of `other`; objects in both are merged likewise. */
export function merged(base: Json, other: Json): Json {
  const fields = Object.entries(other).map(([name, value]) => {
    const before = base[name];
    return [name, isObject(before) && isObject(value) ? merged(before, value) : value];
  });
  return { ...base, ...Object.fromEntries(fields) };
}

/** Throws Error, which names `what`, where `text` is no JSON object. */
export function parseObject(text: string, what: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (problem) {
    throw new Error(`${what}: not valid JSON: ${(problem as Error).message}`);
  }
  if (!isObject(value)) throw new Error(`${what}: not a JSON object.`);
  return value;
}

/** The same text for two values that are equal, whatever the order of their fields. */
export const sortedJson = (value: unknown): string =>
  JSON.stringify(value, (_, part: unknown) =>
    isObject(part) ? Object.fromEntries(Object.entries(part).sort(byName)) : part,
  );

const byName = ([a]: [string, unknown], [b]: [string, unknown]): number => (a < b ? -1 : 1);

/** Whether two values are equal, whatever the order of their fields. */
export function sameJson(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((value, i) => sameJson(value, b[i]));
  if (!isObject(a) || !isObject(b)) return a === b;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => name in b && sameJson(a[name], b[name]));
}
