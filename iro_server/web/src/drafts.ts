// What a user has filled in, kept for this tab.

const PREFIX = "iro-draft-";
const REPLACED = "replaced";

export function draftOf<Value>(name: string): Value | null {
  const text = sessionStorage.getItem(PREFIX + name);
  return text === null ? null : (JSON.parse(text) as Value);
}

/** Nothing is kept of a value that is too large for the browser's storage. */
export function saveDraft(name: string, value: unknown): void {
  try {
    sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    sessionStorage.removeItem(PREFIX + name);
  }
}

/** A draft that is read once: it is kept no longer. */
export function takeDraft<Value>(name: string): Value | null {
  const value = draftOf<Value>(name);
  sessionStorage.removeItem(PREFIX + name);
  return value;
}

/** Keeps the drafts of these names, which are about to be replaced, for `takeReplaced`. */
export function keepDrafts(names: readonly string[]): void {
  saveDraft(REPLACED, Object.fromEntries(names.map((name) => [name, draftOf(name)])));
}

export const hasReplaced = (): boolean => draftOf(REPLACED) !== null;

/** The drafts that `keepDrafts` kept last, by name: null where there was none. They are kept no longer. */
export const takeReplaced = (): Record<string, unknown> => takeDraft<Record<string, unknown>>(REPLACED) ?? {};

export function forgetDrafts(): void {
  for (const name of Object.keys(sessionStorage)) if (name.startsWith(PREFIX)) sessionStorage.removeItem(name);
}
