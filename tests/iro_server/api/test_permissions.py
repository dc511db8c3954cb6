"""A model of one's own, shared with another project and taken back."""

from __future__ import annotations

import openai
import pytest

from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, conforms, ended, new_key, serving, settings_for, start_job

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.slow(5)
def test_a_checkpoint_can_be_called_by_those_who_were_allowed_to(tmp_path):
    settings = settings_for(tmp_path)
    sessions = open_database(settings)
    ours, theirs = (keys.create(sessions, name, name)[1] for name in ("ours", "theirs"))
    with serving(settings, ByteEngine()) as client:
        ours, theirs = client.with_options(api_key=ours), client.with_options(api_key=theirs)
        job = ended(ours, start_job(ours))
        name = ours.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
        permissions = ours.fine_tuning.checkpoints.permissions
        with pytest.raises(openai.NotFoundError):
            theirs.fine_tuning.checkpoints.permissions.create(name, project_ids=["theirs"])
        granted = permissions.create(name, project_ids=["theirs", "third", "theirs"])
        assert {conforms(each).project_id for each in granted} == {"theirs", "third"}
        again = permissions.create(name, project_ids=["theirs"]).data[0]
        assert [each.id for each in permissions.list(name, project_id="theirs")] == [again.id]
        assert theirs.models.retrieve(name).id == name
        theirs.chat.completions.create(model=name, messages=HI, max_tokens=4)
        with pytest.raises(openai.NotFoundError):  # one checkpoint was shared, not the job's other models
            theirs.chat.completions.create(model=job.fine_tuned_model, messages=HI, max_tokens=4)
        with pytest.raises(openai.NotFoundError):
            theirs.fine_tuning.checkpoints.permissions.list(name)
        assert conforms(permissions.delete(again.id, fine_tuned_model_checkpoint=name)).deleted
        with pytest.raises(openai.NotFoundError):
            theirs.chat.completions.create(model=name, messages=HI, max_tokens=4)


def test_a_permission_is_for_one_model_and_only_its_owner_gives_or_takes_it(tmp_path):
    settings = settings_for(tmp_path)
    keys_of = {project: new_key(settings, project) for project in ("default", "guest", "stranger")}
    shared, other = (aligned(settings, name, iterations=1) for name in ("shared", "other"))
    with serving(settings, ByteEngine()) as client:
        owner, guest, stranger = (client.with_options(api_key=key) for key in keys_of.values())
        permissions = owner.fine_tuning.checkpoints.permissions
        of_guest = permissions.create(shared, project_ids=["guest"]).data[0]
        of_stranger = permissions.create(other, project_ids=["stranger"]).data[0]
        with pytest.raises(openai.NotFoundError):
            guest.models.retrieve(other)
        for outsider in (guest, stranger):  # the guest may call the model
            with pytest.raises(openai.NotFoundError):
                outsider.fine_tuning.checkpoints.permissions.create(shared, project_ids=["stranger"])
            with pytest.raises(openai.NotFoundError):
                outsider.fine_tuning.checkpoints.permissions.delete(of_guest.id, fine_tuned_model_checkpoint=shared)
        with pytest.raises(openai.NotFoundError):
            permissions.delete(of_stranger.id, fine_tuned_model_checkpoint=shared)
        assert guest.models.retrieve(shared).id == shared and stranger.models.retrieve(other).id == other


def test_a_model_whose_name_has_a_slash_is_shared_as_any_other(tmp_path):
    settings = settings_for(tmp_path, model_name="org/bytes")
    name = aligned(settings, "ft:org/bytes:iro:x:abcd", iterations=1)
    with serving(settings, ByteEngine()) as client:
        permissions = client.fine_tuning.checkpoints.permissions
        project = "alice's team"  # as `iro keys create` takes it
        (granted,) = permissions.create(name, project_ids=[project])
        assert [each.project_id for each in permissions.list(name)] == [project]
        assert permissions.delete(granted.id, fine_tuned_model_checkpoint=name).deleted
        assert [*permissions.list(name)] == []
