// Values that are read again and again.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "./api";
import { draftOf, saveDraft } from "./drafts";

const HIDDEN = 5000; // milliseconds between reads of a page that nobody sees

/** A value that outlives the page's parts, until the tab is closed or another key is used (`forgetDrafts`). */
export function useDraft<Value>(name: string, initial: Value): [Value, (value: Value) => void] {
  const [value, setValue] = useState<Value>(() => draftOf<Value>(name) ?? initial);
  useEffect(() => saveDraft(name, value), [name, value]);
  return [value, setValue];
}

/**
 * What `read` gives, read again every `every` milliseconds while that is not null. `again` reads at once.
 * After an error the next read waits as long as the server says, and the last value stays.
 */
export function usePolled<Value>(read: (signal: AbortSignal) => Promise<Value>, every: number | null, key: string) {
  const [value, setValue] = useState<Value | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [round, setRound] = useState(0);
  const reader = useRef(read);
  reader.current = read;
  useEffect(() => setValue(null), [key]);
  useEffect(() => {
    const controller = new AbortController();
    let timer = 0;
    const poll = async () => {
      let wait = every;
      try {
        setValue(await reader.current(controller.signal));
        setError(null);
      } catch (problem) {
        if (controller.signal.aborted) return;
        setError(problem as Error);
        const refused =
          problem instanceof ApiError && problem.status >= 400 && problem.status < 500 && problem.status !== 429;
        wait = refused ? null : Math.max(every ?? 0, 2000, problem instanceof ApiError ? problem.retryAfter * 1000 : 0);
      }
      if (wait !== null && !controller.signal.aborted) {
        timer = window.setTimeout(poll, document.hidden ? Math.max(wait, HIDDEN) : wait);
      }
    };
    void poll();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [key, every, round]);
  const again = useCallback(() => setRound((count) => count + 1), []);
  return { value, error, again };
}
