-- Learn from an API's refusal of a call that our limits allowed.
--
-- KEYS  1 meta hash   2 meta hash of the permits   3.. one hash per limit that held for the call
-- ARGV  1 us since the call started   2 us since it was refused   3 other calls of all workers that were in flight then
--       4 permits that this worker held, 0: calls in flight are not limited   5 calls a second that the API took lately
--       6 what there was too much of: 'rate', 'concurrency' or '' where nobody says   7 which limit begins now (from 1), of a
--         pace that nobody wrote down; 0: none   8 the most that its factor may be   9 channel
--      10 how many waves of refusals came in a row, with no call that the API took in between   11 calls of this worker that
--         the API took and that it has not told of yet   12 '1': no other call could start for lack of permits
--      13 us that the API asked to wait, 0: it did not say
-- Returns 1: something was changed; 0: the refusal belongs to one that was counted already.
--
-- Invariants: refusals of calls that started before the latest change count as one with it, however many they are; nothing
-- changes more often than once a second. Nobody who refuses says which limit it was. Calls in flight cannot be the reason
-- where there were none; the pace is not where calls waited for others to end rather than for their time. Where both may
-- be, both come down to what the API took. The first refusal in a while of limits that are written down widens the guard by
-- half (calls may reach the server further apart from their plan than we measured), but not on a server that forgives a
-- burst, where that would cost far more than an accident is worth; the next slows down the pace with the least to spare, and
-- so does one where the wider guard would cost more than a tenth of that pace.
local CALM_US, LEAST_GUARD_US, MOST_GUARD_US, SINCE_US, INNOCENT, LONGEST_WINDOW_US, ENOUGH, FEW, AHEAD, UNSEEN_US =
  60000000, 1000, 10000000, 1000000, 0.8, 60000000, 10, 5, 1.4, 30000
local started, at = now - tonumber(ARGV[1]), now - tonumber(ARGV[2])
local others, held, kind, begins = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[6], tonumber(ARGV[7])
local in_a_row, just_taken, crowded = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12] == '1'
local asked = math.min(tonumber(ARGV[13]), LONGEST_WINDOW_US)
local meta = redis.call('HMGET', M, 'epoch', 'guard', 'guard_before', 'extra', 'extra_at', 'calm')
local function field(i) return tonumber(meta[i] or 0) end
local tightest, forgiving
for i = 3, #KEYS do
  local h = redis.call('HMGET', KEYS[i], 'tat', 'column', 'quota', 'factor', 'mode', 'window', 'gain', 'slack', 'amount', 'taken',
    'taken_from', 'waited', 'row_at', 'row_until',
    'row_factor')
  forgiving = forgiving or tonumber(h[8] or 0) > 0
  if h[6] and h[3] ~= '1' then
    local x = { key = KEYS[i], tat = tonumber(h[1] or 0), requests = h[2] == '1', window = tonumber(h[6]),
      gain = tonumber(h[7]), slack = tonumber(h[8]), amount = tonumber(h[9]), begins = i - 2 == begins }
    adapt.read(x, h[4], h[5])
    x.taken, x.taken_from, x.waited = tonumber(h[10] or 0) + just_taken, tonumber(h[11] or 0), tonumber(h[12] or 0)
    x.row_at, x.row_until, x.row_factor = tonumber(h[13] or at), tonumber(h[14] or 0), tonumber(h[15] or x.factor)
    local searching = x.mode == 'start' or x.most and x.most > 1 or x.begins
    x.rank = (searching and 1e18 or 0) + (x.requests and 1e17 or 0) + x.tat
    if not tightest or x.rank > tightest.rank then tightest = x end
  end
end
if started <= field(1) then return 0 end
local begins_now = tightest and tightest.begins and tightest.mode == ''
if now - field(1) < SINCE_US and not begins_now and not (tightest and tightest.mode == 'start') then return 0 end
redis.call('HSET', M, 'epoch', text(now), 'calm', text(now))

local crowd, again, blamed = in_flight.read(KEYS[2], now, M), now - field(6) < CALM_US, false
if held > 0 and crowd.most > 0 then
  blamed = kind == 'concurrency' or kind == '' and crowded and others > 0 and crowd.count < crowd.most
  if blamed then in_flight.lower(crowd, others) end
elseif others > 0 and (kind == 'concurrency' or kind == '' and again and begins == 0) then
  crowd.most = others + 1
  in_flight.lower(crowd, others)
  redis.call('HSET', M, 'learned_in_flight', 1)
  redis.call('PUBLISH', ARGV[9], 'learned')
end

-- A row of refusals: what the API took before it, of the pace's own count and within the last minute, and since when. If it
-- counts windows, it takes that much from then until it takes calls again.
local function begin_row(x, taken, from)
  redis.call('HSET', x.key, 'row_at', text(at), 'row_until', text(at + asked), 'row_factor', x.factor, 'row_taken', taken, 'row_from', text(from),
    'row_minute', crowd.minute + just_taken, 'row_minute_from', text(crowd.minute_from))
end

-- Units a second in the long run and at most, and how long a window may be, if the API takes calls again at this time.
local function in_windows(x, again_at)
  local h = redis.call('HMGET', x.key, 'row_taken', 'row_from', 'row_minute', 'row_minute_from')
  local best, highest, period = 0, 0, 0
  for i = 1, 3, 2 do
    local taken, from = tonumber(h[i] or 0), tonumber(h[i + 1] or 0)
    local lasted = again_at - from
    if from > 0 and taken / lasted > best then best, highest, period = taken / lasted, taken / math.max(1, at - from), lasted end
  end
  return best * 1e6, highest * 1e6, period
end

local function as_factor(x, per_s) return per_s * x.window / (x.amount * 1e6) end

local function lower(x)
  local delivered, doubt = nil, 1 -- nil: unknown
  if in_a_row > 1 then -- it takes calls again between now and twice as late
    local again_at = 2 * at - x.row_at
    redis.call('HSET', x.key, 'row_until', text(again_at))
    local per_s, highest, period = in_windows(x, x.row_at + AHEAD * (at - x.row_at))
    return adapt.bound(x, per_s > 0 and as_factor(x, per_s) or x.factor, x.row_factor, as_factor(x, highest), period, again_at)
  elseif x.requests and x.taken > 0 and x.taken_from > 0 and at > x.taken_from then
    local lasted, waited = at + asked - x.taken_from, x.waited + math.max(0, x.row_until - x.row_at) + asked
    delivered = x.taken * x.window / (x.amount * lasted)
    doubt = math.min(1, 2 * waited / lasted + FEW / x.taken)
    if x.good and x.good > delivered then delivered = delivered * (x.good / delivered) ^ doubt end
    begin_row(x, x.taken, math.min(at, math.max(x.taken_from, x.row_until)))
    if x.mode == 'start' then -- what was longer ago counts for half
      redis.call('HSET', x.key, 'taken', x.taken / 2, 'taken_from', text((at + x.taken_from) / 2), 'waited', text(waited / 2))
    else
      if x.taken < ENOUGH then delivered = nil end
      redis.call('HSET', x.key, 'taken', 0, 'taken_from', text(at), 'waited', 0)
    end
  end
  if blamed and delivered and delivered < INNOCENT * x.factor then return end
  adapt.lower(x, delivered, doubt)
  if x.begins and x.tat > now then -- starts that were granted at the former pace are void
    redis.call('HSET', x.key, 'tat', text(math.min(x.tat, now + x.window / (x.amount * x.factor))))
    redis.call('PUBLISH', ARGV[9], 'slower')
  end
end
local extra = field(4) * math.exp((field(5) - now) / 1e9)
local guard = math.max(field(2), field(3), LEAST_GUARD_US) + extra
local function affordable(x) return forgiving or x.gain * math.max(0, 1.5 * guard - x.slack) <= x.window / 10 end
if begins_now and blamed and not again then
  return 1 -- if it was not that, the next refusal comes soon
elseif begins_now and kind ~= 'concurrency' then
  local lately = math.max(1, tonumber(ARGV[5]), in_flight.taken_per_s(crowd)) * (blamed and 2 or 1)
  redis.call('HSET', tightest.key, 'taken', 0, 'taken_from', text(at), 'waited', 0)
  begin_row(tightest, crowd.taken + just_taken, crowd.taken_from)
  local windowed = math.huge -- what it takes if it counts windows
  if asked > 0 then
    windowed = in_windows(tightest, at + asked + UNSEEN_US)
  elseif in_a_row > 1 then
    redis.call('HSET', tightest.key, 'row_at', text(field(1)), 'row_until', text(2 * at - field(1)))
    windowed = in_windows(tightest, field(1) + AHEAD * (at - field(1)))
  end
  if windowed == 0 then windowed = math.huge end
  adapt.begin(tightest, as_factor(tightest, math.min(lately, windowed)), tonumber(ARGV[8]), asked > 0 and windowed < lately)
  redis.call('HSET', M, 'learned_pace', 1)
  redis.call('PUBLISH', ARGV[9], 'learned')
elseif kind ~= 'concurrency' and tightest and not (blamed and tightest.mode ~= 'start') then
  if tightest.mode ~= '' or again or not affordable(tightest) then
    lower(tightest)
  elseif not forgiving and guard <= MOST_GUARD_US then
    redis.call('HSET', M, 'extra', text(extra + guard / 2), 'extra_at', text(now))
    redis.call('HSET', tightest.key, 'taken', 0, 'taken_from', text(at))
  end
end
return 1
