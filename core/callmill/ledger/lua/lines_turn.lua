-- Chooses the lines whose queues a worker consumes for now, where there are more than it can consume at once.
-- KEYS  LINES   ARG  queued: prefix of the queued keys   most: lines at most   newest: of them, those that were used last
--       begin: place in LINES from which the others take their turns   scan: places that are looked at
-- Returns lines: those with a queued chunk, or all where they are few   next: where the next turn begins
-- Invariant: the work is bounded by scan, whatever number of lines there is; every line has its turn in LINES / scan turns at
-- the latest, or sooner where few of them have chunks.
-- The queued keys follow from the lines, so they cannot be declared; Redis Cluster is not supported.
local size = redis.call('ZCARD', LINES)
if size <= ARG.most then return answer({ lines = redis.call('ZREVRANGE', LINES, 0, -1), next = 0 }) end
local found, seen = {}, {}
local function take(first, count, limit)
  local lines = redis.call('ZREVRANGE', LINES, first, first + count - 1)
  for at, line in ipairs(lines) do
    if #found >= limit then return first + at - 1 end
    if not seen[line] and redis.call('EXISTS', ARG.queued .. line) == 1 then
      seen[line] = true
      found[#found + 1] = line
    end
  end
  return first + #lines
end
take(0, ARG.scan, ARG.newest)
local next = take(ARG.begin < size and ARG.begin or 0, ARG.scan, ARG.most)
return answer({ lines = found, next = next < size and next or 0 })
