"""What the server does in one step. Each script is all or nothing, also in the append-only file.

Keys of a topic ``t`` and its partition ``p``:

- ``mw:t``: hash of ``partitions``, ``birth``, ``end:p``, the token of the last record, and
  ``group:backups``, which tells until that group is forgotten that something was once kept for it.
- ``mw:t:p``: the stream. Its ids are ``<milliseconds>-<number>``: both only grow, and the numbers
  have no gaps, so that a reader sees at once where records are missing.
- ``mw:t:p:groups``: hash of the token that each group has committed, ``0-0`` before its first. What
  is kept for the group of backups alone goes where there is no room for it.
- ``mw:t:p:lease:g``: who of the group ``g`` reads the partition.

All but ``PUBLISH`` also run where the server has no memory left: they are what makes room.
"""

from __future__ import annotations

from common.events.bus import BACKUPS

_WITHOUT_MEMORY = "#!lua flags=allow-oom"

_FLOOR = """
local function number(token) return tonumber(string.match(token, '-(%d+)$')) end

-- The first id that some group has not committed; nil where there is no group.
local function floor(groups)
  local least, token = nil, nil
  for _, committed in ipairs(redis.call('HVALS', groups)) do
    local n = number(committed)
    if least == nil or n < least then least, token = n, committed end
  end
  if token == nil then return nil end
  return string.match(token, '^(%d+)-'), string.format('%.0f', least + 1)
end

-- Drops what every group has committed.
local function trim(stream, groups)
  local ms, n = floor(groups)
  if ms then redis.call('XTRIM', stream, 'MINID', ms .. '-' .. n) end
end

-- The same where there is no room for what is kept for backups alone.
local function trim_hard(stream, groups)
  if redis.call('HDEL', groups, 'BACKUPS') == 1 then trim(stream, groups) end
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
""".replace("BACKUPS", BACKUPS)

# KEYS: topic, groups of every partition. ARGV: partitions, birth, groups.
DECLARE = (
    _WITHOUT_MEMORY
    + """
local stored = redis.call('HGET', KEYS[1], 'partitions')
if stored and stored ~= ARGV[1] then return tonumber(stored) end
if not stored then
  redis.call('HSET', KEYS[1], 'partitions', ARGV[1], 'birth', ARGV[2])
end
for k = 2, #KEYS do
  for g = 3, #ARGV do redis.call('HSETNX', KEYS[k], ARGV[g], '0-0') end
end
for g = 3, #ARGV do
  if ARGV[g] == 'BACKUPS' then redis.call('HSET', KEYS[1], 'group:BACKUPS', '1') end
end
return tonumber(ARGV[1])
""".replace("BACKUPS", BACKUPS)
)

# KEYS: topic, stream and groups of every old partition, groups of every new one. ARGV: partitions,
# birth, number of old partitions, groups. Returns 1, or 0 where there are other old partitions.
REPLACE = (
    _WITHOUT_MEMORY
    + """
local old = tonumber(ARGV[3])
if tonumber(redis.call('HGET', KEYS[1], 'partitions') or '0') ~= old then return 0 end
local once = redis.call('HGET', KEYS[1], 'group:BACKUPS')
for k = 1, 1 + 2 * old do redis.call('DEL', KEYS[k]) end
redis.call('HSET', KEYS[1], 'partitions', ARGV[1], 'birth', ARGV[2])
if once then redis.call('HSET', KEYS[1], 'group:BACKUPS', once) end
for k = 2 + 2 * old, #KEYS do
  for g = 4, #ARGV do redis.call('HSET', KEYS[k], ARGV[g], '0-0') end
end
return 1
""".replace("BACKUPS", BACKUPS)
)

# KEYS: topic, then stream and groups of each target. ARGV: records a stream may hold, records
# kept without groups, partitions of the topic, partition of each target, number of records for
# each target, then for each record its target (from 1), key, value and headers.
# Returns {'unknown'}, {'moved'}, {'full', partition} or {'ok', id of each record}.
PUBLISH = (
    _FLOOR
    + """
local stored = redis.call('HGET', KEYS[1], 'partitions')
if not stored then return {'unknown'} end
if stored ~= ARGV[3] then return {'moved'} end
local targets = (#KEYS - 1) / 2
local most = tonumber(ARGV[1])
local bounded = {}
for t = 1, targets do
  local stream, groups = KEYS[2 * t], KEYS[2 * t + 1]
  bounded[t] = redis.call('EXISTS', groups) == 1
  if bounded[t] then
    local coming = tonumber(ARGV[3 + targets + t])
    if redis.call('XLEN', stream) + coming > most then
      trim(stream, groups)
      if redis.call('XLEN', stream) + coming > most then trim_hard(stream, groups) end
      if redis.call('XLEN', stream) + coming > most then return {'full', ARGV[3 + t]} end
    end
  end
end
local clock = now()
local ms, n = {}, {}
for t = 1, targets do
  local last = redis.call('HGET', KEYS[1], 'end:' .. ARGV[3 + t]) or '0-0'
  local m, k = string.match(last, '^(%d+)-(%d+)$')
  ms[t], n[t] = math.max(clock, tonumber(m)), tonumber(k)
end
local answer = {'ok'}
for r = 4 + 2 * targets, #ARGV, 4 do
  local t = tonumber(ARGV[r])
  n[t] = n[t] + 1
  local id = string.format('%.0f-%.0f', ms[t], n[t])
  redis.call('XADD', KEYS[2 * t], id, 'k', ARGV[r + 1], 'v', ARGV[r + 2], 'h', ARGV[r + 3])
  answer[#answer + 1] = id
end
for t = 1, targets do
  redis.call('HSET', KEYS[1], 'end:' .. ARGV[3 + t], string.format('%.0f-%.0f', ms[t], n[t]))
  if not bounded[t] then redis.call('XTRIM', KEYS[2 * t], 'MAXLEN', ARGV[2]) end
end
return answer
"""
)

# KEYS: stream, groups, topic, lease where one is needed. ARGV: group, token, milliseconds that
# records stay after their commit (so that a tail sees them), field of the partition's end, who must
# hold the lease. A token beyond that end is of a topic that was here before: it changes nothing.
# Returns 0 where another holds the lease, else 1.
COMMIT = (
    _WITHOUT_MEMORY
    + _FLOOR
    + """
if KEYS[4] and redis.call('GET', KEYS[4]) ~= ARGV[5] then return 0 end
local last = redis.call('HGET', KEYS[3], ARGV[4])
if not last or number(ARGV[2]) > number(last) then return 1 end
local before = redis.call('HGET', KEYS[2], ARGV[1])
if before and number(before) >= number(ARGV[2]) then return 1 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local ms, n = floor(KEYS[2])
local latest = now() - tonumber(ARGV[3])
if tonumber(ms) < latest then
  redis.call('XTRIM', KEYS[1], 'MINID', '~', ms .. '-' .. n)
else
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f-0', latest))
end
return 1
"""
)

# KEYS: stream and groups of each partition. Drops at once what every group has committed, and what
# is kept for backups.
TRIM = (
    _WITHOUT_MEMORY
    + _FLOOR
    + """
for k = 1, #KEYS, 2 do
  trim(KEYS[k], KEYS[k + 1])
  trim_hard(KEYS[k], KEYS[k + 1])
end
"""
)

# KEYS: leases. ARGV: who, milliseconds. Returns for each whether it is held now.
LEASE = (
    _WITHOUT_MEMORY
    + """
local held = {}
for k = 1, #KEYS do
  local owner = redis.call('GET', KEYS[k])
  held[k] = 0
  if not owner or owner == ARGV[1] then
    redis.call('SET', KEYS[k], ARGV[1], 'PX', ARGV[2])
    held[k] = 1
  end
end
return held
"""
)

# KEYS: leases. ARGV: who.
RELEASE = (
    _WITHOUT_MEMORY
    + """
for k = 1, #KEYS do
  if redis.call('GET', KEYS[k]) == ARGV[1] then redis.call('DEL', KEYS[k]) end
end
"""
)
