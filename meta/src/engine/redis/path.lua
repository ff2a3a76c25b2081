-- The inodes on a path, from a directory downwards.
--
-- KEYS[1]: the hash of the directory to start from; ARGV: prefix of the volume's keys, then the names.
-- Answer: entry, attribute record, entry, attribute record, ... as far as the walk gets. A damaged record
-- ends it and is handed out, for the reader to complain about.
local DIRECTORY = 2
local prefix, dir, found = ARGV[1], KEYS[1], {}
for i = 2, #ARGV do
  local entry = redis.call('HGET', dir, ARGV[i])
  if not entry then break end
  local ino = #entry == 9 and decimal(entry, 2)
  local raw = ino and redis.call('GET', prefix .. 'i' .. ino)
  if ino and not raw then break end
  found[#found + 1] = entry
  found[#found + 1] = raw or ''
  if not raw or #raw < 3 or math.floor(string.byte(raw, 2) / 16) ~= DIRECTORY then break end
  dir = prefix .. 'd' .. ino
end
return found
