// A job's events as they come: from a stream of the server's, or read again and again where no stream gets through.

import { useEffect, useRef, useState } from "preact/hooks";
import type { JobEvent } from "../api";
import { followEvents, listEvents } from "../api";
import { usePolled, useShown } from "../hooks";

const BATCH = 50; // milliseconds: events that come together are shown together
const EVERY = 1500; // milliseconds between reads where there is no stream
const SHORTEST = 2000; // milliseconds of a stream that broke off, after which it is opened again at once
const NEXT_TRY = 120_000; // milliseconds until a stream is tried again
const PAGE = 100; // events of a read
const FEW = 20; // of a read for what is new

export interface Events {
  events: JobEvent[];
  error: Error | null;
  again: () => void;
}

/** Newest first. `open`: whether the job has not ended; null: unknown yet, and its events are not read. */
export function useEvents(id: string, open: boolean | null): Events {
  const known = useRef<JobEvent[]>([]);
  const [events, setEvents] = useState<JobEvent[]>([]);
  const [streams, setStreams] = useState(true);
  const isShown = useShown();
  const mayStream = streams && isShown && open !== null; // a browser has few connections to a server, for all its tabs
  useEffect(() => {
    if (!mayStream) return;
    const controller = new AbortController();
    let timer = 0;
    const show = () => setEvents(known.current);
    const add = (event: JobEvent) => {
      known.current = [event, ...known.current];
      clearTimeout(timer);
      timer = window.setTimeout(show, BATCH);
    };
    const poll = () => controller.signal.aborted || setStreams(false); // once more too where all of them came
    follow(id, () => known.current[0]?.id, add, controller.signal).then(poll, poll);
    return () => {
      controller.abort();
      clearTimeout(timer);
      show();
    };
  }, [id, mayStream]);
  useEffect(() => {
    if (streams || !open) return;
    const timer = setTimeout(() => setStreams(true), NEXT_TRY);
    return () => clearTimeout(timer);
  }, [streams, open]);
  const { error, again } = usePolled(
    async (signal) => {
      if (streams) return;
      const fresh = await newer(id, known.current[0]?.id, signal);
      if (fresh.length) known.current = [...fresh, ...known.current];
      setEvents(known.current);
    },
    streams || !open ? null : EVERY,
    `${id} ${streams}`,
  );
  return { events, error, again };
}

/** Streams events to the job's end. A stream that breaks off, as at the server's time limit, is opened again after the
 * `last` event; returns or throws where that is of no use. */
async function follow(
  id: string,
  last: () => string | undefined,
  add: (event: JobEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    const start = performance.now();
    try {
      const stream = followEvents(id, last(), signal);
      let step = await stream.next();
      for (; !step.done; step = await stream.next()) add(step.value);
      if (step.value) return;
    } catch (problem) {
      if (performance.now() - start < SHORTEST) throw problem;
    }
    if (signal.aborted || performance.now() - start < SHORTEST) return;
  }
}

/** Events after the one named `last`, newest first. */
async function newer(id: string, last: string | undefined, signal: AbortSignal): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  for (;;) {
    const limit = last && events.length === 0 ? FEW : PAGE;
    const page = await listEvents(id, events.at(-1)?.id ?? null, limit, signal);
    for (const event of page.data) {
      if (event.id === last) return events;
      events.push(event);
    }
    if (!page.has_more) return events;
  }
}
