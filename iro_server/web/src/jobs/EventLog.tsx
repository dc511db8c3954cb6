// The job's events, newest first.

import { useEffect, useRef, useState } from "preact/hooks";
import type { JobEvent } from "../api";
import { followEvents, listEvents } from "../api";
import { clock } from "../format";
import { usePolled } from "../hooks";
import { Problem } from "../parts";

const SHOWN = 200; // at first
const BATCH = 50; // milliseconds: events that come together are shown together

export interface Events {
  events: JobEvent[];
  error: Error | null;
  again: () => void;
}

/** Newest first: from a stream of the server's, and where it breaks off read again every `every` milliseconds. */
export function useEvents(id: string, every: number | null): Events {
  const known = useRef<JobEvent[]>([]);
  const [events, setEvents] = useState<JobEvent[]>([]);
  const [streams, setStreams] = useState(true);
  useEffect(() => {
    const controller = new AbortController();
    let timer = 0;
    const show = () => setEvents(known.current);
    const follow = async () => {
      for await (const event of followEvents(id, known.current[0]?.id, controller.signal)) {
        known.current = [event, ...known.current];
        clearTimeout(timer);
        timer = window.setTimeout(show, BATCH);
      }
    };
    const poll = () => controller.signal.aborted || setStreams(false); // once more too where all of them came
    follow().then(poll, poll);
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [id]);
  const { error, again } = usePolled(
    async (signal) => {
      if (streams) return;
      const fresh = await newer(id, known.current[0]?.id, signal);
      if (fresh.length) known.current = [...fresh, ...known.current];
      setEvents(known.current);
    },
    streams ? null : every,
    `${id} ${streams}`,
  );
  return { events, error, again };
}

/** Events after the one named `last`, newest first. */
async function newer(id: string, last: string | undefined, signal: AbortSignal): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  for (;;) {
    const page = await listEvents(id, events.at(-1)?.id ?? null, signal);
    for (const event of page.data) {
      if (event.id === last) return events;
      events.push(event);
    }
    if (!page.has_more) return events;
  }
}

export function EventLog({ events, error, again }: Events) {
  const [all, setAll] = useState(false);
  const shown = all ? events : events.slice(0, SHOWN);
  return (
    <section class="card" aria-labelledby="events">
      <h2 id="events">Events</h2>
      {error && <Problem error={error} again={again} />}
      {events.length === 0 && <p class="faint">None yet.</p>}
      <ol class="events" tabIndex={0} aria-label="Events, newest first" aria-live="polite" aria-relevant="additions">
        {shown.map((event) => (
          <li key={event.id} class={event.level}>
            <time dateTime={new Date(event.created_at * 1000).toISOString()}>{clock(event.created_at)}</time>
            {event.level !== "info" && <strong>{event.level === "warn" ? "warning" : event.level}</strong>}
            <span class="text">{event.message}</span>
          </li>
        ))}
      </ol>
      {shown.length < events.length && <button onClick={() => setAll(true)}>Show all {events.length} events</button>}
    </section>
  );
}
