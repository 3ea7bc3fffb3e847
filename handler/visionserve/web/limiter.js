/** A function that runs tasks in order of arrival, at most `limit` of them at a time. */
export function limiter(limit) {
  const waiting = [];
  let free = limit;
  return async (task) => {
    if (free > 0) free -= 1;
    else await new Promise((start) => waiting.push(start));
    try {
      return await task();
    } finally {
      const start = waiting.shift();
      if (start) start();
      else free += 1;
    }
  };
}
