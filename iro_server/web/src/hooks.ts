// Values that are read again and again.

import type { Dispatch, StateUpdater } from "preact/hooks";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "./api";
import { draftOf, saveDraft } from "./drafts";

const HIDDEN = 5000; // milliseconds between reads of a page that nobody sees

/** A value that outlives the page's parts, until the tab is closed or another key is used (`forgetDrafts`). */
export function useDraft<Value>(name: string, initial: Value): [Value, Dispatch<StateUpdater<Value>>] {
  const [value, setValue] = useState<Value>(() => draftOf<Value>(name) ?? initial);
  useLayoutEffect(() => saveDraft(name, value), [name, value]); // before the next event, which may leave the page
  return [value, setValue];
}

interface Polled<Value> {
  key: string; // of which the others are
  value: Value | null;
  error: Error | null;
}

/**
 * What `read` gives, read again every `every` milliseconds while that is not null. `again` reads at once.
 * After an error the next read waits as long as the server says, and the last value of this `key` stays.
 */
export function usePolled<Value>(read: (signal: AbortSignal) => Promise<Value>, every: number | null, key: string) {
  const [state, setState] = useState<Polled<Value>>({ key, value: null, error: null });
  const { value, error } = state.key === key ? state : { value: null, error: null };
  const [round, setRound] = useState(0);
  const reader = useRef(read);
  reader.current = read;
  useEffect(() => {
    const controller = new AbortController();
    let timer = 0;
    const poll = async () => {
      let wait = every;
      try {
        const fresh = await reader.current(controller.signal);
        if (controller.signal.aborted) return;
        setState({ key, value: fresh, error: null });
      } catch (problem) {
        if (controller.signal.aborted) return;
        setState((last) => ({ key, value: last.key === key ? last.value : null, error: problem as Error }));
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
